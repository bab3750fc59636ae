"""Image boxes: which rectangle of its picture each image position of a prompt stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmneuron_lens.architectures.picture_areas import (
    Box,
    Pictured,
    canvas,
    cells,
    cells_of_tile,
    cut,
    parts,
    parts_of_tile,
    seen,
    square,
    tile_areas,
    tile_places,
    whole,
)
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.tiles import detail_grid


def boxes_in(picture: Pictured, facts: Facts) -> list[Box | None]:
    """The rectangle of every position of a picture, in order; None where a position has no place in it.

    None are newlines, positions of padding alone, and positions whose arrangement is not known. A rectangle ends where
    the picture does. What is resized is blurred over its neighbours too: a rectangle is what a position's patches
    cover, not all that has a weight in them.
    """
    merged = math.isqrt(facts["merged"])
    if picture.grid is not None:
        rows, columns = (count // merged for count in picture.grid)
        return cells(whole(picture), rows, columns, picture)
    if facts["tiling"] == "several":
        return _tiles(picture, facts, merged)
    if facts["tiling"] == "anyres":
        return _anyres(picture, facts)
    return cells_of_tile(seen(picture), picture, facts, merged)


def _tiles(picture: Pictured, facts: Facts, merged: int) -> list[Box | None]:
    """InternVL and Idefics3: the picture stretched over a grid of tiles, row by row, then the whole in one tile."""
    each = facts["patches"] // merged**2
    tiles = picture.positions // each
    overview = cells_of_tile(whole(picture), picture, facts, merged)
    if tiles <= 1:
        return overview
    places = tile_places(picture, tiles)
    if places is None:
        return [*[None] * (picture.positions - each), *overview]
    areas = tile_areas(places, picture)
    return [*(box for area in areas for box in cells_of_tile(area, picture, facts, merged)), *overview]


def _anyres(picture: Pictured, facts: Facts) -> list[Box | None]:
    """LLaVA-NeXT: the whole in one tile, then the patches of larger tiles without their padding, a newline a row."""
    overview = cells_of_tile(whole(picture), picture, facts)
    left = picture.positions - len(overview)
    if left <= 1:
        # LLaVA-OneVision: one of several pictures in a row is padded to a square.
        return [*(overview if picture.alone else cells_of_tile(square(picture), picture, facts)), *[None] * left]
    lines = _detail(picture, facts)
    if left != sum(len(line) + 1 for line in lines):
        # LLaVA-OneVision: a larger grid made smaller.
        rows, columns = len(lines), len(lines[0])
        across = next((one for one in range(columns, 0, -1) if _fits(one, rows, columns, left)), 0)
        if not across:
            return [*overview, *[None] * left]
        found = parts(_around(lines), left // (across + 1), across)
        lines = [found[start : start + across] for start in range(0, len(found), across)]
    return [*overview, *(box for line in lines for box in (*(cut(one, picture) for one in line), None))]


def _detail(picture: Pictured, facts: Facts) -> list[list[Box]]:
    """Patches of the larger tiles, line by line, beyond the picture too; lines that are padding are left out."""
    rows, columns = detail_grid([picture.height, picture.width], facts)
    down, across, area = canvas(picture, facts)
    side = math.isqrt(facts["patches"])
    tiles = [parts_of_tile(tile, picture, facts) for tile in parts(area, down, across)]
    above, before = (down * side - rows) // 2, (across * side - columns) // 2
    return [
        [
            tiles[row // side * across + column // side][row % side * side + column % side]
            for column in range(before, before + columns)
        ]
        for row in range(above, above + rows)
    ]


def _around(lines: Sequence[Sequence[Box]]) -> Box:
    """From the first box to the last."""
    (left, top, _, _), (_, _, right, bottom) = lines[0][0], lines[-1][-1]
    return left, top, right, bottom


def _fits(across: int, rows: int, columns: int, positions: int) -> bool:
    """Whether a grid of so many columns, made smaller in both directions alike, takes these positions."""
    down, left = divmod(positions, across + 1)
    return not left and down > 0 and abs(down / across - rows / columns) <= 1 / across
