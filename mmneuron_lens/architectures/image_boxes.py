"""Image boxes: which rectangle of its picture each image position of a prompt stands for."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.tiles import anyres_grid, detail_grid

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the picture."""

MARK = re.compile(r"<row_(\d+)_col_(\d+)>$")
"""What stands before a tile of Idefics3, counted from 1."""


@dataclass(frozen=True)
class Pictured:
    """A picture in a prompt.

    - height, width: of the picture as it was given
    - positions: how many it takes
    - grid: rows and columns of patches, where the tower has no tiles of one size
    - marks: what stands before each run of its positions
    - alone: whether it is the only picture of its row
    - processor: the image processor
    """

    height: int
    width: int
    positions: int
    grid: tuple[int, int] | None
    marks: Sequence[str]
    alone: bool
    processor: Any


def boxes_in(picture: Pictured, facts: Facts) -> list[Box | None]:
    """The rectangle of every position of a picture, in order; None where a position has no place in it.

    None are newlines, positions of padding alone, and positions whose arrangement is not known. A rectangle ends where
    the picture does. What is resized is blurred over its neighbours too: a rectangle is what a position's patches
    cover, not all that has a weight in them.
    """
    merged = math.isqrt(facts["merged"])
    if picture.grid is not None:
        rows, columns = (count // merged for count in picture.grid)
        return _cells(_whole(picture), rows, columns, picture)
    side = math.isqrt(facts["patches"]) // merged
    if facts["tiling"] == "several":
        return _tiles(picture, side)
    if facts["tiling"] == "anyres":
        return _anyres(picture, facts, side)
    return _cells(_seen(picture), side, side, picture)


def _whole(picture: Pictured) -> Box:
    return 0.0, 0.0, float(picture.width), float(picture.height)


def _cells(area: Box, rows: int, columns: int, picture: Pictured) -> list[Box | None]:
    """An area in equal cells, row by row; each cut where the picture ends, None where nothing of it is left."""
    left, top, right, bottom = area
    across, down = (right - left) / columns, (bottom - top) / rows
    cells = [
        (left + column * across, top + row * down, left + (column + 1) * across, top + (row + 1) * down)
        for row in range(rows)
        for column in range(columns)
    ]
    return [_cut(cell, picture) for cell in cells]


def _cut(box: Box, picture: Pictured) -> Box | None:
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[2], float(picture.width)), min(box[3], float(picture.height))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _tiles(picture: Pictured, side: int) -> list[Box | None]:
    """InternVL and Idefics3: the picture stretched over a grid of tiles, row by row, then the whole in one tile."""
    each = side * side
    tiles = picture.positions // each
    overview = _cells(_whole(picture), side, side, picture)
    if tiles <= 1:
        return overview
    places = _marked(picture, tiles) or _counted(picture, tiles)
    if places is None:
        return [*[None] * (picture.positions - each), *overview]
    down, across = max(row for row, _ in places) + 1, max(column for _, column in places) + 1
    wide, high = picture.width / across, picture.height / down
    found: list[Box | None] = []
    for row, column in places:
        area = (column * wide, row * high, (column + 1) * wide, (row + 1) * high)
        found += _cells(area, side, side, picture)
    return found + overview


def _marked(picture: Pictured, tiles: int) -> list[tuple[int, int]] | None:
    """Row and column of every tile, as the prompt names them."""
    found = [MARK.search(mark) for mark in picture.marks[:-1]]
    places = [(int(mark[1]) - 1, int(mark[2]) - 1) for mark in found if mark]
    return places if len(places) == len(found) == tiles - 1 else None


def _counted(picture: Pictured, tiles: int) -> list[tuple[int, int]] | None:
    """Row and column of every tile, as the processor chooses the grid nearest to the picture's aspect ratio."""
    processor = picture.processor
    choose = getattr(inspect.getmodule(type(processor)), "get_optimal_tiled_canvas", None)
    if choose is None:
        return None
    size, least, most = processor.size, processor.min_patches, processor.max_patches
    across, down = choose((picture.height, picture.width), (size["height"], size["width"]), least, most)
    return [(row, column) for row in range(down) for column in range(across)] if across * down == tiles - 1 else None


def _anyres(picture: Pictured, facts: Facts, side: int) -> list[Box | None]:
    """LLaVA-NeXT: the whole in one tile, then the patches of larger tiles without their padding, a newline a row."""
    overview = _cells(_whole(picture), side, side, picture)
    left = picture.positions - len(overview)
    if left <= 1:
        # LLaVA-OneVision: one of several pictures in a row is padded to a square.
        return [*(overview if picture.alone else _cells(_square(picture), side, side, picture)), *[None] * left]
    size = [picture.height, picture.width]
    rows, columns = detail_grid(size, facts)
    area = _detail(picture, facts, rows, columns)
    if left != rows * (columns + 1):
        # LLaVA-OneVision: a larger grid made smaller.
        columns = next((one for one in range(columns, 0, -1) if _fits(one, rows, columns, left)), 0)
        if not columns:
            return [*overview, *[None] * left]
        rows = left // (columns + 1)
    cells = _cells(area, rows, columns, picture)
    lines = (cells[start : start + columns] for start in range(0, rows * columns, columns))
    return [*overview, *(box for line in lines for box in (*line, None))]


def _detail(picture: Pictured, facts: Facts, rows: int, columns: int) -> Box:
    """What the patches of the larger tiles cover, those of padding left out: a little more than the picture."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    pinpoints, tile = anyres_grid(facts)
    down, across = get_anyres_image_grid_shape([picture.height, picture.width], pinpoints, tile)
    patch = tile / math.isqrt(facts["patches"])
    wide, high = across * tile, down * tile
    # As large as fits, its sides rounded up, in the middle of the tiles.
    by_width, by_height = wide / picture.width, high / picture.height
    if by_width < by_height:
        fitted = wide, min(math.ceil(picture.height * by_width), high)
    else:
        fitted = min(math.ceil(picture.width * by_height), wide), high
    before = (wide - fitted[0]) // 2, (high - fitted[1]) // 2
    cut = (wide - columns * patch) / 2, (high - rows * patch) / 2
    scale = picture.width / fitted[0], picture.height / fitted[1]
    left, top = (cut[0] - before[0]) * scale[0], (cut[1] - before[1]) * scale[1]
    return left, top, left + columns * patch * scale[0], top + rows * patch * scale[1]


def _fits(across: int, rows: int, columns: int, positions: int) -> bool:
    """Whether a grid of so many columns, made smaller in both directions alike, takes these positions."""
    down, left = divmod(positions, across + 1)
    return not left and down > 0 and abs(down / across - rows / columns) <= 1 / across


def _seen(picture: Pictured) -> Box:
    """What the one square that the tower sees covers: padding, stretching and cropping as the processor does it."""
    processor = picture.processor
    area = _whole(picture)
    if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
        area = _square(picture)
    crop, shortest = getattr(processor, "crop_size", None), _setting(processor, "size", "shortest_edge")
    if not (getattr(processor, "do_center_crop", False) and crop and shortest):
        return area
    left, top, right, bottom = area
    wide, high = right - left, bottom - top
    scale = shortest / min(wide, high)
    resized = int(wide * scale), int(high * scale)
    inside = [
        ((length - kept) // 2, kept) for length, kept in zip(resized, (crop["width"], crop["height"]), strict=True)
    ]
    (first, across), (above, down) = inside
    to_x, to_y = wide / resized[0], high / resized[1]
    return left + first * to_x, top + above * to_y, left + (first + across) * to_x, top + (above + down) * to_y


def _square(picture: Pictured) -> Box:
    """The picture in the middle of a square, in its own pixels."""
    longest = max(picture.width, picture.height)
    left, top = -((longest - picture.width) // 2), -((longest - picture.height) // 2)
    return float(left), float(top), float(left + longest), float(top + longest)


def _setting(processor: Any, name: str, key: str) -> Any:
    setting: Any = getattr(processor, name, None) or {}
    return setting.get(key)
