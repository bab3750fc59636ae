"""The lists of parameters in docstrings, `- name: what it is`, with their names as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

LISTED = re.compile(r"^(\s*- )(\w+(?:, \w+)*)(?=: )", re.MULTILINE)
FURTHER = re.compile(r"(?<=\. )([a-z_]+(?:, [a-z_]+)*)(?=: )")
"""A second parameter on the line of the first: "- run: the folder. site: which one."."""


class ParameterLists(griffe.Extension):
    """Sees every object once it is read from the source."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring, which is kept as written in the source."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(docstring: str) -> str:
    """A docstring with the names of its parameters as code."""
    lines = [_line(line) if LISTED.match(line) else line for line in docstring.splitlines()]
    return "\n".join(lines)


def _line(line: str) -> str:
    return FURTHER.sub(_as_code, LISTED.sub(lambda found: found[1] + _code(found[2]), line))


def _as_code(found: re.Match[str]) -> str:
    return _code(found[1])


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))
