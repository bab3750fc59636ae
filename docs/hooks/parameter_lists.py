"""How docstrings and signatures of the source are shown: names of listed parameters as code, shapes without padding."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

import griffe

LISTED = re.compile(r"^(\s*- )(\w+(?:, \w+)*)(?=: )", re.MULTILINE)
FURTHER = re.compile(r"(?<=\. )([a-z_]+(?:, [a-z_]+)*)(?=: )")
"""A second parameter on the line of the first: "- run: the folder. site: which one."."""

PADDED = re.compile(r"""^(['"]) (\w+\1)$""")
"""A shape of one axis, which jaxtyping's users write with a space in front, so that it is not taken for a name."""


class ParameterLists(griffe.Extension):
    """Sees every object once it is read from the source."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites what is shown of it; the source stays as it is."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
        if isinstance(obj, griffe.Function):
            obj.returns = unpadded(obj.returns)
            for parameter in obj.parameters:
                parameter.annotation = unpadded(parameter.annotation)


def shown(docstring: str) -> str:
    """A docstring with the names of its parameters as code."""
    lines = [_line(line) if LISTED.match(line) else line for line in docstring.splitlines()]
    return "\n".join(lines)


def unpadded(value: Any) -> Any:
    """An annotation whose shapes of one axis have no space in front."""
    if isinstance(value, str):
        return PADDED.sub(r"\1\2", value)
    if isinstance(value, list):
        return [unpadded(one) for one in value]
    if is_dataclass(value) and isinstance(value, griffe.Expr):
        for field in fields(value):
            if field.name != "parent":
                object.__setattr__(value, field.name, unpadded(getattr(value, field.name)))
    return value


def _line(line: str) -> str:
    return FURTHER.sub(_as_code, LISTED.sub(lambda found: found[1] + _code(found[2]), line))


def _as_code(found: re.Match[str]) -> str:
    return _code(found[1])


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))
