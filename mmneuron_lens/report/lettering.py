"""Names in figures: short enough for their place, no two alike, in letters that the font has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from mmneuron_lens.report.tables import domain_names

FONT = "DejaVu Sans"
"""It comes with matplotlib, so a figure has the same bytes everywhere."""

NAME, TITLE = 28, 64
"""Characters of a name at an axis or in a legend, and of a panel's title."""


def lettered(text: str, longest: int = TITLE) -> str:
    """The text in letters that the font has, others by code point (`U+65E5`), and cut where it is longer."""
    shown = "".join(
        one if one.isprintable() and _font().get_char_index(ord(one)) else f"U+{ord(one):04X}" for one in text
    )
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def lettered_domains(domains: Iterable[str]) -> dict[str, str]:
    """How each of these domains is written in a figure; those that would look alike are numbered."""
    return _apart(domain_names(domains), lambda name: lettered(name, NAME))


def lettered_titles(titles: Iterable[str]) -> list[str]:
    """How panels are called; those that would look alike are numbered."""
    return [*_apart({title: title for title in titles}, lettered).values()]


def _apart(names: dict[str, str], short: Callable[[str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one, name in names.items():
        shown, number = short(name), 1
        while (text := shown if number == 1 else f"{shown} ({number})") in found.values():
            number += 1
        found[one] = text
    return found


@cache
def _font() -> FT2Font:
    return FT2Font(font_manager.findfont(FONT))
