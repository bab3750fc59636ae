"""Patches: boxes of a prompt's positions as shares of the picture, as artifacts keep them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmneuron_lens.runtime.batch import Batch


def boxes_of(batch: Batch, row: int = 0) -> Float[Tensor, "token 5"]:
    """For every position of a row: image, left, top, right, bottom, as shares of that image's width and height.

    NaN for what is no part of an image, and where `Batch.boxes` has none.
    """
    boxes = torch.full((batch.inputs["input_ids"].shape[1], 5), math.nan, dtype=torch.float32, device="cpu")
    found = batch.boxes(row)
    if not batch.facts["images_in_text"] or not len(found):
        return boxes
    sizes = torch.tensor(batch.picture_sizes(row), dtype=torch.float32, device="cpu")
    height, width = sizes[found[:, 0].long()].unbind(-1)
    shares = torch.cat([found[:, :1], found[:, 1:] / torch.stack([width, height, width, height], dim=-1)], dim=-1)
    boxes[batch.positions("image", row)] = shares.masked_fill(shares.isnan().any(-1, keepdim=True), math.nan)
    return boxes
