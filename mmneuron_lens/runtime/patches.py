"""Patches: which part of an image each image position of a prompt stands for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire.tiles import detail_grid

NOWHERE = (math.nan,) * 5


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of an image's width and height."""


def boxes_of(batch: Batch, row: int = 0) -> Float[Tensor, "token 5"]:
    """For every position of a row: image, left, top, right, bottom, as shares of that image's width and height.

    NaN for text and padding, for newline positions, for the queries of a Q-Former, which see the whole image, and for
    the tiles of InternVL and Idefics3 but the last of an image, its overview: their arrangement is not in the batch.
    LLaVA-NeXT's overview tile comes first (the image squeezed into a square), then the patches of its larger tiles
    without their padding.
    """
    before = sum(batch.images[:row])
    boxes = [NOWHERE] * batch.inputs["input_ids"].shape[1]
    if batch.facts["images_in_text"]:
        for number, span in enumerate(batch.image_spans(row)):
            for column, box in zip(span, _of_image(batch, before + number, len(span)), strict=True):
                boxes[column] = (number, *box) if box else NOWHERE
    return torch.tensor(boxes, dtype=torch.float32, device="cpu")


def _of_image(batch: Batch, place: int, positions: int) -> list[Box | None]:
    facts, merged = batch.facts, math.isqrt(batch.facts["merged"])
    if facts["tiling"] == "grid":
        _, height, width = batch.inputs["image_grid_thw"][place].tolist()
        return list(_grid(height // merged, width // merged))
    if facts["tiling"] == "sizes":
        height, width = (batch.inputs["image_sizes"][place] // facts["patch_size"] // merged).tolist()
        return list(_grid(height, width))
    side = math.isqrt(facts["patches"]) // merged
    overview = list(_grid(side, side))
    if facts["tiling"] != "anyres" or "image_sizes" not in batch.inputs:
        return [*[None] * (positions - len(overview)), *overview]
    rows, columns = detail_grid(batch.inputs["image_sizes"][place].tolist(), facts)
    if positions != len(overview) + rows * (columns + 1):
        # LLaVA-OneVision: one tile and a newline, or a larger grid made smaller.
        columns = next(
            (one for one in range(columns, 0, -1) if _fits(one, rows, columns, positions - len(overview))), 0
        )
        rows = (positions - len(overview)) // (columns + 1)
    detail = list(_grid(rows, columns)) if columns else []
    lines = (detail[start : start + columns] for start in range(0, rows * columns, columns or 1))
    found: list[Box | None] = [*overview, *(box for line in lines for box in (*line, None))]
    return found + [None] * (positions - len(found))


def _fits(across: int, rows: int, columns: int, positions: int) -> bool:
    """Whether a grid of so many columns, made smaller in both directions alike, takes these positions."""
    down, left = divmod(positions, across + 1)
    return not left and down > 0 and abs(down / across - rows / columns) <= 1 / across


def _grid(rows: int, columns: int) -> Iterator[tuple[float, float, float, float]]:
    for row in range(rows):
        for column in range(columns):
            yield column / columns, row / rows, (column + 1) / columns, (row + 1) / rows
