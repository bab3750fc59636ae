"""Saved form: a graph as JSON, field by field, and where a document differs from it."""

from __future__ import annotations

import reprlib
from typing import Any, NotRequired, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from interventions.bindings import Packed, Plain
from interventions.errors import InvalidValue
from interventions.graph import Mode
from interventions.overs import Word


class SavedFold(TypedDict):
    """A fold as JSON. fold: the name of one of ours, with its arguments; or `package.module:function`, without any."""

    fold: str
    arguments: dict[str, Plain]


class SavedIntervention(TypedDict):
    """One intervention as JSON, where tuples are lists. function: `package.module:function`."""

    function: str
    mode: Mode
    sites: list[str]
    over: Word | SavedFold | None
    name: str
    bindings: dict[str, Packed]
    layers: list[int] | None
    positions: str | list[int | str | None] | None
    steps: str | list[int] | None
    rows: list[int] | None
    all_beams: bool


class SavedGraph(TypedDict):
    """A graph as JSON. tensors: the name of the safetensors file beside it, where one is needed."""

    format: str
    version: int
    interventions: list[SavedIntervention]
    tensors: NotRequired[str]


_FORM = TypeAdapter(SavedGraph)


def checked_form(document: object) -> SavedGraph:
    """The same document, every field of which has its type.

    Raises `InvalidValue` naming the first field that is missing, unknown or of another type, its value and the choices.
    """
    try:
        _FORM.validate_python(document, strict=True, extra="forbid")
    except ValidationError as error:
        raise InvalidValue(_told([dict(one) for one in error.errors(include_url=False)], document)) from None
    return cast(SavedGraph, document)


def _told(errors: list[dict[str, Any]], document: object) -> str:
    first = errors[0]
    place, value = _place(first["loc"], document)
    if first["type"] == "missing":
        return f"{place}{first['loc'][-1]} is missing."
    place = place.removesuffix(".")
    if first["type"] == "extra_forbidden":
        return f"{place} is no field of a saved graph of this version."
    # A field that may be of several types has a line for each.
    lines = [str(one["msg"]) for one in errors if _place(one["loc"], document)[0].removesuffix(".") == place]
    due = " or ".join(dict.fromkeys(line.removeprefix("Input should be ") for line in lines))
    verb = "choose from" if first["type"] == "literal_error" else "it should be"
    return f"{place} is {reprlib.repr(value)}; {verb} {due}."


def _place(parts: tuple[str | int, ...], document: object) -> tuple[str, object]:
    """A place in the document as one writes it, with a dot behind a field, and the value that is there."""
    place, value = "", document
    for part in parts:
        inside = _inside(value)
        if part not in inside:
            # Which of several types was tried.
            break
        value = inside[part]
        place = f"{place.removesuffix('.')}[{part}]." if isinstance(part, int) else f"{place}{part[:80]}."
    return place, value


def _inside(value: object) -> dict[str | int, object]:
    """By key or index."""
    if isinstance(value, list):
        return dict(enumerate(cast("list[object]", value)))
    return cast("dict[str | int, object]", value) if isinstance(value, dict) else {}
