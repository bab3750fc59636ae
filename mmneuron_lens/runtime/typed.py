"""Typed: functions whose annotations are checked at every call, and what goes wrong in one said in a line."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from types import CodeType, TracebackType
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeException
from jaxtyping import TypeCheckError, jaxtyped

from interventions.errors import InvalidType

CHECKED = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int passes where a float is asked, as Python's numbers do."""

DTYPES = {"f": "float", "bf": "bfloat", "i": "int", "u": "uint", "c": "complex"}


PLAIN = (bool, int, float, str, type(None))
"""What a default may be that takes no memory to speak of."""


class ShapeError(InvalidType):
    """A function of the graph does not fit the site it acts at."""


def typed_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked at every call; axis names are shared between arguments.

    A call that does not fit raises `ShapeError` in one line. Raises `InvalidType` for annotations that mean nothing.
    """
    # What a function holds, a tensor perhaps, lives no longer for having been checked.
    return _typed(function) if _holds(function) else _kept(function)


def _holds(function: Callable[..., Any]) -> bool:
    """Whether a function closes over anything, or has a default that may be large."""
    by_place, by_name = (getattr(function, name, None) for name in ("__defaults__", "__kwdefaults__"))
    defaults = (*(by_place or ()), *(by_name or {}).values())
    return bool(getattr(function, "__closure__", None)) or not all(isinstance(one, PLAIN) for one in defaults)


@functools.lru_cache(maxsize=256)
def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    return _typed(function)


def _typed(function: Callable[..., Any]) -> Callable[..., Any]:
    if function.__name__ == "<lambda>":
        # Has no annotations, and a name that a checked signature cannot be written with.
        return function
    try:
        checked = jaxtyped(typechecker=CHECKED)(function)
    except (BeartypeException, NameError) as error:
        said = " ".join(str(error).split())[:200]
        raise InvalidType(f"{named(function)}: its annotations cannot be checked ({said}).") from None

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            return checked(*arguments, **keywords)
        except TypeCheckError as error:
            said = f"{named(function)}, {told(str(error), function)}"
        raise ShapeError(said)

    return call


def unread(function: Callable[..., Any]) -> str | None:
    """Why annotations are not checked: names that are not at the top of the function's module; None where all are."""
    try:
        inspect.get_annotations(inspect.unwrap(function), eval_str=True)
    except Exception as error:
        return f"its annotations are not checked ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    return None


def told(message: str, function: Callable[..., Any]) -> str:
    """What jaxtyping says in many lines: which argument, what was expected, and what came."""

    def part(pattern: str) -> str:
        found = re.search(pattern, message, re.DOTALL)
        return " ".join(found[1].split()) if found else ""

    name = part(r"typechecking parameter '(\w+)'")
    annotation = inspect.get_annotations(inspect.unwrap(function)).get(name or "return", "")
    expected = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    got = re.sub(r"\b([a-z]+)(\d*)\[([\d,]*)\]\(torch\)", _shown, part(r"Actual value: (.*?)\nExpected type"))
    axes = part(r"axis annotation are as follows\.\n(.*)").replace("torch.Size(", "").replace(")", "")
    where = f", where {axes}" if "=" in axes else ""
    what = f"argument {name}" if name else "what it returns" if "return value" in message else "its arguments"
    if len(got) > 160:
        got = f"{got[:160]}..."
    return f"{what}: expected {expected or 'what it is annotated with'}, got {got}{where}"


def named(function: Callable[..., Any]) -> str:
    """A function by its name, and the file and line where it is written."""
    plain = inspect.unwrap(function)
    code: CodeType | None = getattr(plain, "__code__", None)
    return plain.__name__ if code is None else f"{plain.__name__} ({place(code.co_filename, code.co_firstlineno)})"


def place(file: str, line: int) -> str:
    """A line of a file, or of a notebook's cell."""
    return f"a cell, line {line}" if "ipykernel_" in file or file.startswith("<ipython") else f"{file}:{line}"


def inside(error: BaseException, function: Callable[..., Any]) -> TracebackType | None:
    """The part of an error's traceback that lies inside a function; None where it was not raised there."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return next((frame for frame in frames(error) if frame.tb_frame.f_code is code), None)


def frames(error: BaseException) -> Iterator[TracebackType]:
    """An error's frames, outermost first."""
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next


def _shown(found: re.Match[str]) -> str:
    return f"{DTYPES.get(found[1], found[1])}{found[2]} [{found[3].replace(',', ', ')}]"
