"""Picture areas: which part of its picture each tile covers, and a part in equal cells."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.tiles import anyres_grid

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the picture."""

MARK = re.compile(r"<row_(\d+)_col_(\d+)>$")
"""What stands before a tile of Idefics3, counted from 1."""

LEAST = 1e-6
"""Pixels of a picture that a box holds at least in each direction; less is rounding."""


@dataclass(frozen=True)
class Pictured:
    """A picture in a prompt.

    - height, width: of the picture as it was given
    - positions: how many it takes
    - grid: rows and columns of patches, where the tower has no tiles of one size
    - marks: what stands before each run of its positions
    - alone: whether it is the only picture of its row
    - side: of a tile, in pixels, where the tower has tiles of one size
    - processor: the image processor
    """

    height: int
    width: int
    positions: int
    grid: tuple[int, int] | None
    marks: Sequence[str]
    alone: bool
    side: int
    processor: Any


def whole(picture: Pictured) -> Box:
    """All of it."""
    return 0.0, 0.0, float(picture.width), float(picture.height)


def square(picture: Pictured) -> Box:
    """The picture in the middle of a square, in its own pixels."""
    longest = max(picture.width, picture.height)
    left, top = -((longest - picture.width) // 2), -((longest - picture.height) // 2)
    return float(left), float(top), float(left + longest), float(top + longest)


def seen(picture: Pictured) -> Box:
    """What the one square that the tower sees covers: padding, stretching and cropping as the processor does it."""
    processor = picture.processor
    area = whole(picture)
    if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
        area = _fitted(picture, processor.min_size) if hasattr(processor, "min_size") else square(picture)
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


def _fitted(picture: Pictured, least: int) -> Box:
    """DeepSeek-VL: the picture made as large as the tile, no side shorter than `least`, and padded to a square then."""
    scale = picture.side / max(picture.width, picture.height)
    wide, high = (max(round(length * scale), least) for length in (picture.width, picture.height))
    to_x, to_y = picture.width / wide, picture.height / high
    left, top = -((picture.side - wide) // 2) * to_x, -((picture.side - high) // 2) * to_y
    return left, top, left + picture.side * to_x, top + picture.side * to_y


def cells(area: Box, rows: int, columns: int, picture: Pictured) -> list[Box | None]:
    """An area in equal cells, row by row; each cut where the picture ends, None where nothing of it is left."""
    return [cut(part, picture) for part in parts(area, rows, columns)]


def parts(area: Box, rows: int, columns: int) -> list[Box]:
    """An area in equal parts, row by row, beyond the picture too."""
    left, top, right, bottom = area
    across, down = (right - left) / columns, (bottom - top) / rows
    return [
        (left + column * across, top + row * down, left + (column + 1) * across, top + (row + 1) * down)
        for row in range(rows)
        for column in range(columns)
    ]


def cut(box: Box, picture: Pictured) -> Box | None:
    """What of a box lies in the picture; None where nothing does."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[2], float(picture.width)), min(box[3], float(picture.height))
    return (left, top, right, bottom) if right - left > LEAST and bottom - top > LEAST else None


def cells_of_tile(area: Box | None, picture: Pictured, facts: Facts, merged: int = 1) -> list[Box | None]:
    """As `parts_of_tile`, each cut where the picture ends; None where nothing of it is left, or there is no area."""
    if area is None:
        return [None] * (facts["patches"] // merged**2)
    return [cut(part, picture) for part in parts_of_tile(area, picture, facts, merged)]


def parts_of_tile(area: Box, picture: Pictured, facts: Facts, merged: int = 1) -> list[Box]:
    """The patches of a tile, or what `merged` by `merged` of them become, row by row, beyond the picture too.

    Where a tile's side is no multiple of a patch's (384 pixels, patches of 14), what is left over on the right and at
    the bottom is in no patch.
    """
    count = math.isqrt(facts["patches"])
    left, top, right, bottom = area
    share = count * facts["patch_size"] / picture.side
    covered = left, top, left + (right - left) * share, top + (bottom - top) * share
    return parts(covered, count // merged, count // merged)


def tile_places(picture: Pictured, tiles: int) -> list[tuple[int, int]] | None:
    """InternVL and Idefics3: row and column of every tile but the last, the overview; None where that is not known."""
    return _marked(picture, tiles) or _counted(picture, tiles)


def tile_areas(places: Sequence[tuple[int, int]], picture: Pictured) -> list[Box]:
    """What tiles cover of a picture that is stretched over their grid, by row and column of each."""
    down, across = max(row for row, _ in places) + 1, max(column for _, column in places) + 1
    areas = parts(whole(picture), down, across)
    return [areas[row * across + column] for row, column in places]


def canvas(picture: Pictured, facts: Facts) -> tuple[int, int, Box]:
    """LLaVA-NeXT: rows and columns of larger tiles, and what all of them cover: the picture, and padding around it."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    pinpoints, tile = anyres_grid(facts)
    down, across = get_anyres_image_grid_shape([picture.height, picture.width], pinpoints, tile)
    wide, high = across * tile, down * tile
    # As large as fits, its sides rounded up, in the middle of the tiles.
    by_width, by_height = wide / picture.width, high / picture.height
    if by_width < by_height:
        fitted = wide, min(math.ceil(picture.height * by_width), high)
    else:
        fitted = min(math.ceil(picture.width * by_height), wide), high
    before = (wide - fitted[0]) // 2, (high - fitted[1]) // 2
    scale = picture.width / fitted[0], picture.height / fitted[1]
    left, top = -before[0] * scale[0], -before[1] * scale[1]
    return down, across, (left, top, left + wide * scale[0], top + high * scale[1])


def _marked(picture: Pictured, tiles: int) -> list[tuple[int, int]] | None:
    """As the prompt names them."""
    found = [MARK.search(mark) for mark in picture.marks[:-1]]
    places = [(int(mark[1]) - 1, int(mark[2]) - 1) for mark in found if mark]
    return places if len(places) == len(found) == tiles - 1 else None


def _counted(picture: Pictured, tiles: int) -> list[tuple[int, int]] | None:
    """As the processor chooses the grid nearest to the picture's aspect ratio."""
    processor = picture.processor
    choose = getattr(inspect.getmodule(type(processor)), "get_optimal_tiled_canvas", None)
    if choose is None:
        return None
    size, least, most = processor.size, processor.min_patches, processor.max_patches
    across, down = choose((picture.height, picture.width), (size["height"], size["width"]), least, most)
    return [(row, column) for row in range(down) for column in range(across)] if across * down == tiles - 1 else None


def _setting(processor: Any, name: str, key: str) -> Any:
    setting: Any = getattr(processor, name, None) or {}
    return setting.get(key)
