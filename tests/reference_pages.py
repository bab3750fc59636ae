"""What the pages of docs/reference/ tell of: dotted paths, and the objects that these are."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from interventions import Intervention

PAGES = Path(__file__).parent.parent / "docs" / "reference"
ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
OURS = ("interventions", "mmneuron_lens")


@cache
def entries() -> dict[str, str]:
    """By dotted path, the name of the page that tells of it."""
    return {path: page.name for page in PAGES.glob("*.md") for path in ENTRY.findall(page.read_text(encoding="utf-8"))}


def found_at(path: str) -> Any:
    """The object at a dotted path, as the reference's generator reads it: a module before what is called like it."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            value = getattr(value, name)
        return value
    raise LookupError(path)


def told_of() -> list[Any]:
    """Every object that has an entry."""
    return [found_at(path) for path in entries()]


def functions_of(value: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions that an entry shows, by name: itself, that of an intervention, or public methods."""
    if isinstance(value, Intervention):
        yield value.name, value.function
    elif inspect.isclass(value):
        for name, member in vars(value).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if not name.startswith("_") and inspect.isfunction(function) and inspect.getdoc(function):
                yield f"{value.__name__}.{name}", function
    elif inspect.isfunction(value):
        yield value.__name__, value


def returned(function: Callable[..., Any]) -> set[type]:
    """The classes of ours that a function's annotation says it returns."""
    written = str(inspect.signature(function).return_annotation)
    there = vars(sys.modules[function.__module__])
    return {one for name in re.findall(r"[A-Za-z_]\w*", written) if _is_ours(one := there.get(name))}


def fields_of(value: Any) -> set[str]:
    """The public fields of a dataclass."""
    return {one.name for one in dataclasses.fields(value) if not one.name.startswith("_")}


def _is_ours(value: Any) -> bool:
    return inspect.isclass(value) and value.__module__.startswith(OURS)
