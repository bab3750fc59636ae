"""Narrowing: what `Intervention.at` takes, checked and put into one form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from interventions.errors import InvalidType, InvalidValue
from interventions.sites import GROUP_KINDS, SITES, matching, unknown

Slice: TypeAlias = tuple[Literal["slice"], int | None, int | None, int | None]
"""A slice as plain data: the word, start, stop and step."""

Positions: TypeAlias = str | tuple[int, ...] | Slice | None
"""A kind of position, indices, or a slice; None means all."""

StepsWord: TypeAlias = Literal["prompt", "generated", "all"]

Steps: TypeAlias = StepsWord | tuple[int, ...]
"""A word, or indices of forward passes (0 is the prompt)."""

POSITION_KINDS = tuple(dict.fromkeys(kind for kinds in GROUP_KINDS.values() for kind in kinds))
STEPS: tuple[StepsWord, ...] = ("prompt", "generated", "all")


def checked_sites(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The same names and globs; raises `UnknownName` with the choices for one that means no site."""
    for pattern in patterns:
        matching(pattern, tuple(SITES))
    return patterns


def indices(what: str, value: int | Iterable[int] | slice) -> tuple[int, ...]:
    """One index or several as a tuple; raises `InvalidType` for a slice. what: the argument's name, for the message."""
    if isinstance(value, slice):
        raise InvalidType(f"{what} takes indices, not a slice: write {what}=range({value.start or 0}, n).")
    return (value,) if isinstance(value, int) else tuple(int(index) for index in value)


def checked_positions(value: int | str | slice | Iterable[int]) -> Positions:
    """Raises `InvalidValue` with the choices for a kind of position that no site has."""
    if isinstance(value, str):
        if value not in POSITION_KINDS:
            raise InvalidValue(unknown("kind of position", value, POSITION_KINDS))
        return value
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    return indices("positions", value)


def checked_steps(value: int | str | Iterable[int]) -> Steps:
    """Raises `InvalidValue` with the choices for a word that is none of them."""
    if isinstance(value, str):
        if value not in STEPS:
            raise InvalidValue(unknown("steps", value, STEPS))
        return value
    return indices("steps", value)


def show_positions(positions: Positions) -> str:
    """As one would write them: `1:`, `0, -1`, `image`."""
    if isinstance(positions, tuple) and positions and positions[0] == "slice":
        return ":".join("" if part is None else str(part) for part in positions[1:]).removesuffix(":")
    return positions if isinstance(positions, str) else ", ".join(map(str, positions or ()))


def show_steps(steps: Steps) -> str:
    """As one would write them: `prompt`, `0, 1`."""
    return steps if isinstance(steps, str) else ", ".join(map(str, steps))
