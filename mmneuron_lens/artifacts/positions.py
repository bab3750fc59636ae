"""Positions of a prompt by name: "image 8" (the eighth image token), "text -1" (the last text token), "last", 17."""

from __future__ import annotations

from collections.abc import Sequence

from interventions.errors import InvalidValue, OutOfRange

Position = int | str

PAPERS: dict[str, tuple[str, str]] = {
    "remote_sensing": ("image 2", "text -1"),
    "medical": ("image 8", "text -1"),
    "document": ("image 377", "text -5"),
    "common": ("image 49", "text -9"),
    "auto_driving": ("image 37", "text -18"),
}
"""The image and the text token that the paper shows of each domain: Figures 6 and 10 to 13."""


DEFAULT = ("image 2", "text -1")
"""Those of the paper's Figure 6."""


def positions_of(domain: str) -> tuple[str, str]:
    """The positions that the paper shows of a domain; of one it does not have, those of Figure 6."""
    return PAPERS.get(domain, DEFAULT)


def place_of(position: Position, kinds: Sequence[str]) -> int:
    """The column of a position.

    - position: a column from 0, or a negative one from the end; "last"; or a kind of token and its number among its
      kind, from 1, negative from the end.
    - kinds: of every column, "image" or "text".

    Raises `InvalidValue` for what is no position, `OutOfRange` for one that these columns do not have.
    """
    name, index = _read(position)
    places = [place for place, kind in enumerate(kinds) if name in ("", kind)]
    if not -len(places) <= index < len(places):
        where = f"{len(places)} {name} tokens" if name else f"{len(places)} tokens"
        raise OutOfRange(f"positions [{position!r}] are not in this prompt of {where}.")
    return places[index]


def check_position(position: Position) -> None:
    """Raises `InvalidValue` for what is neither a position nor "paper"."""
    if position != "paper":
        _read(position)


def _read(position: Position) -> tuple[str, int]:
    """The kind ("" of any) and the index from 0."""
    *names, number = str(position).replace("last", "-1").split() or [""]
    name = " ".join(names)
    digits = number.removeprefix("-")
    if name not in ("", "image", "text") or not (digits.isascii() and digits.isdecimal()) or (name and not int(digits)):
        raise InvalidValue(f"{position!r} is no position; give a column (17, -1), last, image 8, text -5, or paper.")
    return name, int(number) - (1 if name and int(number) > 0 else 0)
