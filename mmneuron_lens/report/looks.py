"""Colours, markers and dashes, in one place: those of domains are the same everywhere, other lines have theirs.

All can be told apart with any colour vision, and without colour by marker or dashes, on white and on black.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

DOMAIN_COLOURS = {
    "common": "#0072B2",
    "remote_sensing": "#D55E00",
    "medical": "#009E73",
    "document": "#CC79A7",
    "auto_driving": "#E69F00",
}
"""One colour a domain of the paper: Okabe and Ito's."""

FURTHER_COLOURS = ("#56B4E9", "#B4577F", "#999933")
"""Of domains of one's own, once the paper's five are taken."""

OTHER_COLOUR = "#7F7F7F"

DOMAIN_MARKERS = {"common": "o", "remote_sensing": "s", "medical": "^", "document": "D", "auto_driving": "v"}
FURTHER_MARKERS = ("P", "X", "<", ">", "p", "h", "*")

LINE_COLOURS = ("#4C8DD6", "#E0607E", "#3FA66B", "#A77BD9", "#B08A1E", "#3E9BB3")
LINE_MARKERS = ("o", "s", "^", "D", "v", "P")
LINE_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def colours_of(domains: Iterable[str]) -> list[str]:
    """A colour a domain: its own, and for domains of one's own those that are left."""
    return _own_or_left(domains, DOMAIN_COLOURS, FURTHER_COLOURS, OTHER_COLOUR)


def looks_of(domains: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each domain, as matplotlib takes them."""
    domains = [*domains]
    markers = _own_or_left(domains, DOMAIN_MARKERS, FURTHER_MARKERS, "P")
    pairs = zip(domains, colours_of(domains), markers, strict=True)
    return {domain: {"color": colour, "marker": marker} for domain, colour, marker in pairs}


def line_looks(names: Iterable[str], dashed: bool = False) -> dict[str, dict[str, Any]]:
    """Colour and marker of lines that are no domains, in their order.

    - dashed: whether they have dashes of their own too.
    """
    found: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        found[name] = {"color": LINE_COLOURS[place % len(LINE_COLOURS)]}
        # Beyond the colours, the markers go on from another one.
        found[name]["marker"] = LINE_MARKERS[(place + place // len(LINE_COLOURS)) % len(LINE_MARKERS)]
        found[name] |= {"linestyle": LINE_DASHES[place % len(LINE_DASHES)]} if dashed else {}
    return found


def _own_or_left(domains: Iterable[str], own: dict[str, str], further: tuple[str, ...], other: str) -> list[str]:
    domains = [*domains]
    left = [one for name, one in own.items() if name not in domains] + [*further]
    return [own.get(one) or (left.pop(0) if left else other) for one in domains]
