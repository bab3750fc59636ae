"""Image boxes: which rectangle of its picture each image position of a prompt stands for."""

from __future__ import annotations

import math

from mmneuron_lens.architectures.picture_areas import (
    Box,
    Pictured,
    canvas,
    cells,
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
    side = math.isqrt(facts["patches"]) // merged
    if facts["tiling"] == "several":
        return _tiles(picture, side)
    if facts["tiling"] == "anyres":
        return _anyres(picture, facts, side)
    return cells(seen(picture), side, side, picture)


def _tiles(picture: Pictured, side: int) -> list[Box | None]:
    """InternVL and Idefics3: the picture stretched over a grid of tiles, row by row, then the whole in one tile."""
    each = side * side
    tiles = picture.positions // each
    overview = cells(whole(picture), side, side, picture)
    if tiles <= 1:
        return overview
    places = tile_places(picture, tiles)
    if places is None:
        return [*[None] * (picture.positions - each), *overview]
    areas = tile_areas(places, picture)
    return [*(box for area in areas for box in cells(area, side, side, picture)), *overview]


def _anyres(picture: Pictured, facts: Facts, side: int) -> list[Box | None]:
    """LLaVA-NeXT: the whole in one tile, then the patches of larger tiles without their padding, a newline a row."""
    overview = cells(whole(picture), side, side, picture)
    left = picture.positions - len(overview)
    if left <= 1:
        # LLaVA-OneVision: one of several pictures in a row is padded to a square.
        return [*(overview if picture.alone else cells(square(picture), side, side, picture)), *[None] * left]
    size = [picture.height, picture.width]
    rows, columns = detail_grid(size, facts)
    area = _detail(picture, facts, rows, columns)
    if left != rows * (columns + 1):
        # LLaVA-OneVision: a larger grid made smaller.
        columns = next((one for one in range(columns, 0, -1) if _fits(one, rows, columns, left)), 0)
        if not columns:
            return [*overview, *[None] * left]
        rows = left // (columns + 1)
    found = cells(area, rows, columns, picture)
    lines = (found[start : start + columns] for start in range(0, rows * columns, columns))
    return [*overview, *(box for line in lines for box in (*line, None))]


def _detail(picture: Pictured, facts: Facts, rows: int, columns: int) -> Box:
    """What the patches of the larger tiles cover, those of padding left out: a little more than the picture."""
    down, across, (left, top, right, bottom) = canvas(picture, facts)
    side = math.isqrt(facts["patches"])
    # Of a patch, in pixels of the picture.
    wide, high = (right - left) / (across * side), (bottom - top) / (down * side)
    left, top = left + (across * side - columns) / 2 * wide, top + (down * side - rows) / 2 * high
    return left, top, left + columns * wide, top + rows * high


def _fits(across: int, rows: int, columns: int, positions: int) -> bool:
    """Whether a grid of so many columns, made smaller in both directions alike, takes these positions."""
    down, left = divmod(positions, across + 1)
    return not left and down > 0 and abs(down / across - rows / columns) <= 1 / across
