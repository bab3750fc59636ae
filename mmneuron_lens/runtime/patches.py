"""Patches: which part of an image each image position of a prompt stands for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire import layout

NOWHERE = (math.nan,) * 5


def boxes_of(batch: Batch, row: int = 0) -> Float[Tensor, "token 5"]:
    """For every position of a row: image, left, top, right, bottom, as shares of that image's width and height.

    NaN for text, padding, the newline tokens of LLaVA-NeXT, and the queries of a Q-Former, which see the whole image.
    LLaVA-NeXT's overview tile comes first (the image squeezed into a square), then the patches of its larger tiles
    without their padding.
    """
    before = sum(batch.images[:row])
    boxes: list[tuple[float, ...]] = []
    if batch.facts["images_in_text"]:
        lengths = layout.image_lengths(batch.inputs, batch.facts)
        for number in range(batch.images[row]):
            place = before + number
            boxes += [(number, *box) if box else NOWHERE for box in _of_image(batch, place)]
            assert len(boxes) == sum(lengths[before : place + 1])
    found = iter(boxes)
    kinds = batch.kind[row]
    rows = [next(found, NOWHERE) if kind == "image" else NOWHERE for kind in kinds]
    return torch.tensor(rows, dtype=torch.float32, device="cpu")


def _of_image(batch: Batch, place: int) -> list[tuple[float, float, float, float] | None]:
    side = math.isqrt(batch.facts["patches"])
    overview = list(_grid(side, side))
    if "image_sizes" not in batch.inputs:
        return [*overview]
    rows, columns = detail_grid(batch.inputs["image_sizes"][place].tolist(), batch.facts)
    detail = list(_grid(rows, columns))
    lines = (detail[start : start + columns] for start in range(0, rows * columns, columns))
    return [*overview, *(box for line in lines for box in (*line, None))]


def _grid(rows: int, columns: int) -> Iterator[tuple[float, float, float, float]]:
    for row in range(rows):
        for column in range(columns):
            yield column / columns, row / rows, (column + 1) / columns, (row + 1) / rows


def detail_grid(size: list[int], facts: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the patches of LLaVA-NeXT's larger tiles, padding left out. size: height, width in pixels."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = math.isqrt(facts["patches"])
    down, across = get_anyres_image_grid_shape(size, facts["grid_pinpoints"], facts["tile_size"])
    rows, columns = down * side, across * side
    height, width = size
    # The image fills one direction; the same whole rows or columns at both ends of the other are padding.
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows, columns
