"""Tower boxes: which rectangle of its picture each position of the vision tower, or of the projector, stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from mmneuron_lens.architectures.picture_areas import (
    Box,
    Pictured,
    canvas,
    cells,
    cells_of_tile,
    parts,
    seen,
    square,
    tile_areas,
    tile_places,
    whole,
)
from mmneuron_lens.wire.facts_types import Facts

Before: TypeAlias = Literal["vision", "projector"]
"""Groups of sites before the language model whose positions lie in a picture."""


def tower_boxes_in(picture: Pictured, facts: Facts, tiles: int, group: Before) -> list[Box | None]:
    """The rectangle of every position that a picture has at sites of a group, in the order of the field `position`.

    - tiles: of the picture, those of padding left out; not read where the tower has no tiles of one size

    None are CLS tokens, patches of padding alone, the queries of a Q-Former, and patches whose arrangement is not
    known. A rectangle ends where the picture does, as in `boxes_in`.
    """
    if group == "projector" and facts["queries"]:
        return [None] * facts["queries"]
    merged = math.isqrt(facts["merged"])
    by = merged if group == "projector" else 1
    if picture.grid is not None:
        rows, columns = (count // by for count in picture.grid)
        found = cells(whole(picture), rows, columns, picture)
        # The processor has patches in blocks, each of what becomes one position.
        return in_blocks(found, columns, merged) if facts["tiling"] == "grid" and by == 1 else found
    before: list[Box | None] = [None] * (facts["cls"] if group == "vision" else 0)
    return [
        box
        for area in areas_of_tiles(picture, facts, tiles)
        for box in (*before, *cells_of_tile(area, picture, facts, by))
    ]


def areas_of_tiles(picture: Pictured, facts: Facts, tiles: int) -> Sequence[Box | None]:
    """What each tile covers, beyond the picture too where there is padding; None where that is not known.

    LLaVA-NeXT has the overview first, InternVL and Idefics3 have it last.
    """
    if facts["tiling"] == "several":
        places = tile_places(picture, tiles) if tiles > 1 else []
        details = [None] * (tiles - 1) if places is None else tile_areas(places, picture) if places else []
        return [*details, whole(picture)]
    if facts["tiling"] != "anyres":
        return [seen(picture)]
    if tiles == 1:
        # LLaVA-OneVision: one of several pictures in a row is padded to a square.
        return [whole(picture) if picture.alone else square(picture)]
    down, across, area = canvas(picture, facts)
    return [whole(picture), *(parts(area, down, across) if down * across == tiles - 1 else [None] * (tiles - 1))]


def in_blocks(found: Sequence[Box | None], columns: int, merged: int) -> list[Box | None]:
    """Patches that stand row by row, in blocks of `merged` by `merged`, the blocks row by row."""
    rows = len(found) // columns
    return [
        found[(top + row) * columns + left + column]
        for top in range(0, rows, merged)
        for left in range(0, columns, merged)
        for row in range(merged)
        for column in range(merged)
    ]
