"""Row pictures: the pictures of one row of a batch, its positions by kind, and where in a picture each of them lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import InvalidType, InvalidValue, OutOfRange, UnknownName
from mmneuron_lens.architectures.image_boxes import boxes_in
from mmneuron_lens.architectures.picture_areas import Box, Pictured
from mmneuron_lens.architectures.tower_boxes import Before, tower_boxes_in
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.images import decode
from mmneuron_lens.wire.tiles import tiles_per_image
from mmneuron_lens.wire.types import Sharing

KINDS = ("image", "text", "generated", "padding")

LONGEST_MARK = 20
"""Tokens before a tile that may name it: one, or where a tokenizer does not know the name one a character."""


def columns_of(kind: object, kinds: Sequence[str], spans: Callable[[], list[list[int]]]) -> list[int]:
    """The columns of a kind of position, or of an image by its number; `kinds` is of every column of a row."""
    if isinstance(kind, int) and not isinstance(kind, bool):
        found = spans()
        if not -len(found) <= kind < len(found):
            raise OutOfRange(f"positions({kind}): this row has {len(found)} images, counted from 0.")
        return found[kind]
    if not isinstance(kind, str):
        raise InvalidType(f"positions takes a kind ({', '.join(KINDS)}) or the number of an image, not {kind!r}.")
    if kind not in KINDS:
        raise UnknownName(f"There are no {kind!r} positions. Choices: {', '.join(KINDS)}, or the number of an image.")
    return [column for column, one in enumerate(kinds) if one == kind]


def row_of(row: object, rows: int) -> int:
    """A row from 0; negative ones count from the end. Raises `OutOfRange` for one that is not there."""
    if not isinstance(row, int) or isinstance(row, bool):
        raise InvalidType(f"row is a whole number, not {row!r}.")
    if not -rows <= row < rows:
        raise OutOfRange(f"There is no row {row}; this batch has {rows}.")
    return row % rows


def image_of(image: object, images: int) -> int:
    """The number of a picture from 0; negative ones count from the end. Raises `OutOfRange` for one not there."""
    if not isinstance(image, int) or isinstance(image, bool):
        raise InvalidType(f"image is the number of a picture, not {image!r}.")
    if not -images <= image < images:
        raise OutOfRange(f"There is no image {image}; this row has {images}, counted from 0.")
    return image % images


def group_of(group: object) -> Before:
    """A group of sites before the language model. Raises `UnknownName` for another."""
    if group in ("vision", "projector"):
        return cast(Before, group)
    raise UnknownName(
        f"tower_boxes knows no group {group!r}. Choices: vision, projector; of the language model, see `boxes`."
    )


def images_of_row(given: Sequence[Sequence[Any]], sharing: Sharing, counts: Sequence[int], row: int) -> Sequence[Any]:
    """The pictures of a row as they were given. counts: how many each row has."""
    if "spread" in sharing:
        flat = [image for some in given for image in some]
        before = sum(counts[:row])
        return [flat[place] for place in sharing["spread"]["rows"][before : before + counts[row]]]
    return given[row]


def sizes_of(images: Sequence[Any]) -> list[tuple[int, int]]:
    """Height and width of pictures, as a viewer shows them."""
    return [(picture.height, picture.width) for picture in map(decode, images)]


def grid_of(inputs: Mapping[str, Tensor], facts: Facts, place: int) -> tuple[int, int] | None:
    """Rows and columns of patches of the picture at a place among all of a batch; None where tiles have one size."""
    if facts["tiling"] == "grid":
        _, rows, columns = inputs["image_grid_thw"][place]
    elif facts["tiling"] == "sizes":
        rows, columns = inputs["image_sizes"][place] // facts["patch_size"]
    else:
        return None
    return int(rows), int(columns)


def tiles_of(inputs: Mapping[str, Tensor], facts: Facts, counts: Sequence[int], row: int) -> list[int | None]:
    """How many tiles each picture of a row has; None where its positions, or its grid, say that. counts: as above."""
    if facts["tiling"] != "anyres" or not counts[row]:
        return [1 if facts["tiling"] == "one" else None] * counts[row]
    before = sum(counts[:row])
    return list(tiles_per_image(inputs, facts)[before : before + counts[row]])


def pictured_in(
    spans: Sequence[Sequence[int]],
    sizes: Sequence[tuple[int, int]],
    grids: Sequence[tuple[int, int] | None],
    words: Sequence[str],
    side: int,
    processor: Any,
) -> list[Pictured]:
    """What laying boxes needs to know of every picture of a row.

    - spans: the columns of each image
    - sizes: height and width of each picture
    - grids: as `grid_of`
    - words: the tokens of the row
    - side: of a tile, in pixels
    """
    found: list[Pictured] = []
    for span, (height, width), grid in zip(spans, sizes, grids, strict=True):
        starts = [column for column in span if column - 1 not in span]
        marks = ["".join(words[max(column - LONGEST_MARK, 0) : column]) for column in starts]
        found.append(Pictured(height, width, len(span), grid, marks, len(spans) == 1, side, processor))
    return found


def boxes_of_row(pictures: Sequence[Pictured], facts: Facts) -> Float[Tensor, "position 5"]:
    """Image, left, top, right and bottom of every image position of a row."""
    in_text = facts["images_in_text"]
    return as_table([boxes_in(one, facts) if in_text else [None] * one.positions for one in pictures])


def tower_boxes_of_row(
    pictures: Sequence[Pictured], tiles: Sequence[int | None], facts: Facts, group: Before
) -> Float[Tensor, "position 5"]:
    """Image, left, top, right and bottom of every position of a row's pictures at the sites of a group.

    tiles: as `tiles_of`.
    """
    each = max(facts["patches"] // facts["merged"], 1)
    return as_table(
        [
            tower_boxes_in(one, facts, one.positions // each if count is None else count, group)
            for one, count in zip(pictures, tiles, strict=True)
        ]
    )


def as_table(boxes: Sequence[Sequence[Box | None]]) -> Float[Tensor, "position 5"]:
    """Boxes of each picture, one below the other, its number before them; NaN where there is none."""
    nowhere = (math.nan,) * 4
    found = [(float(number), *(box or nowhere)) for number, some in enumerate(boxes) for box in some]
    return torch.tensor(found, dtype=torch.float32, device="cpu").view(-1, 5)


def of_positions(values: object, columns: Sequence[int], width: int) -> Float[Tensor, " position"]:
    """Of values that are one a column of a row of `width`, or one a position in `columns`, the latter."""
    if not isinstance(values, Tensor):
        raise InvalidType(f"values is a tensor, not {type(values).__name__}.")
    if values.ndim != 1 or len(values) not in (len(columns), width):
        raise InvalidValue(
            f"values is {list(values.shape)}; give [{width}], one for every column of the row, or "
            f"[{len(columns)}], one for every image position."
        )
    given = values.detach().float().cpu()
    return given if len(given) == len(columns) else given[list(columns)]


def of_tower(values: object, count: int) -> Float[Tensor, " position"]:
    """Of values that are one for each of `count` positions of a tower, also by tile and patch, the former."""
    if not isinstance(values, Tensor):
        raise InvalidType(f"values is a tensor, not {type(values).__name__}.")
    if values.ndim not in (1, 2) or values.numel() != count:
        raise InvalidValue(
            f"values is {list(values.shape)}; give [{count}], one for every position of the row's pictures there, or "
            f"[tile, patch], as a site shows {count} of them."
        )
    return values.detach().flatten().float().cpu()


def painted(
    values: Float[Tensor, " position"], boxes: Float[Tensor, "position 4"], size: tuple[int, int]
) -> Float[Tensor, "height width"]:
    """Values laid on a picture: a pixel shows that of the smallest box in which its middle lies, NaN where none does.

    - values: one a box
    - boxes: left, top, right and bottom in pixels; NaN for what has no place
    - size: height and width of the picture
    """
    picture = torch.full(size, math.nan, dtype=torch.float32, device="cpu")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for place in area.argsort(descending=True, stable=True):
        if not bool(area[place].isnan()):
            left, top, right, bottom = (math.ceil(float(edge) - 0.5) for edge in boxes[place])
            picture[top:bottom, left:right] = values[place]
    return picture
