"""Patch order: that the patches of an image stand at a site in the order in which the image has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire.tiles import tiles_per_image

Read = Callable[[Batch], Tensor]
"""What a site shows of a batch: `[tile, patch, ...]`."""


def order_of_patches(batch: Batch, read: Read) -> list[list[int]]:
    """By tile, which patch of the image each position shows, where each depends on its own patch alone.

    - read: a site of the vision tower before patches see each other, such as the queries of its first layer.

    Patches are changed half and half, as many times as their number has digits in base two. A position that depends on
    several patches, or on none, comes out as a number that is not its own.
    """
    weight = batch.fields["vision"]["weight"]
    tiles, positions = weight.shape
    cls = batch.facts["cls"]
    before = read(batch)
    places = torch.arange(tiles * (positions - cls), device="cpu").view(tiles, -1)
    # From 1, so that every patch is changed at least once.
    found = torch.zeros(tiles, positions, dtype=torch.long, device="cpu")
    for digit in range(int(places.numel()).bit_length()):
        chosen = (places + 1 >> digit) % 2 == 1
        pixels = with_patches_changed(batch, chosen)
        after = read(replace(batch, inputs={**batch.inputs, "pixel_values": pixels}))
        found += (after != before).flatten(2).any(-1).cpu().long() << digit
    seen: list[list[int]] = (found - 1).tolist()
    return seen


def in_order(batch: Batch) -> list[list[int]]:
    """What `order_of_patches` gives where all is well: -1 for positions of CLS, then a tile's own patches."""
    tiles, positions = batch.fields["vision"]["weight"].shape
    cls, each = batch.facts["cls"], positions - batch.facts["cls"]
    return [[-1] * cls + list(range(tile * each, (tile + 1) * each)) for tile in range(tiles)]


def with_patches_changed(batch: Batch, chosen: Bool[Tensor, "tile patch"]) -> Tensor:
    """The pixels of a batch with some patches made brighter.

    - chosen: by tile and place in it, rows of patches one after the other; one row for all images where the tower has
      them in one
    """
    pixels, facts = batch.inputs["pixel_values"].clone(), batch.facts
    chosen = chosen.to(pixels.device)
    if facts["tiling"] == "grid":
        # A row a patch, as the processor lays them out.
        pixels[chosen.flatten()] += 1
        return pixels
    flat = pixels.flatten(0, -4)
    rows = list(range(len(flat)))
    if facts["tiling"] == "sizes":
        grids = [(int(height), int(width)) for height, width in batch.inputs["image_sizes"] // facts["patch_size"]]
        parts = chosen.flatten().split([height * width for height, width in grids])
    else:
        side = math.isqrt(facts["patches"])
        rows = real_tiles(batch)
        grids, parts = [(side, side)] * len(rows), tuple(chosen)
    size = facts["patch_size"]
    for tile, grid, part in zip(rows, grids, parts, strict=True):
        where = part.view(grid).repeat_interleave(size, 0).repeat_interleave(size, 1)
        height, width = where.shape
        flat[tile, :, :height, :width] += where.to(flat)
    return flat.view(pixels.shape)


def real_tiles(batch: Batch) -> list[int]:
    """Which of a batch's tiles the vision tower sees: a batch has as many for every image, some of them padding."""
    pixels = batch.inputs["pixel_values"]
    if batch.facts["tiling"] == "anyres" and pixels.ndim == 5:
        most = pixels.shape[1]
        counts = tiles_per_image(batch.inputs, batch.facts)
        return [image * most + tile for image, count in enumerate(counts) for tile in range(count)]
    return [row for row, tile in enumerate(pixels.flatten(0, -4)) if bool(tile.any())]
