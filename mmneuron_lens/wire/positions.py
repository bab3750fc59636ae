"""Positions: what the rotary embedding of a language model is given for every token."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from mmneuron_lens.wire.facts_types import Facts


def positions(inputs: Mapping[str, Tensor], facts: Facts) -> Int[Tensor, "*axis row token"]:
    """Positions that skip padding, as generation counts them, so that a padded row computes what it does alone.

    `[rows, tokens]`; or `[3, rows, tokens]`, a time, a row and a column, where the facts say "grid".
    """
    mask = inputs["attention_mask"].long()
    if facts["positions"] == "grid":
        return grid_positions(inputs, facts)
    return (mask.cumsum(-1) - 1).clamp(min=0) + facts["first"]


def grid_positions(inputs: Mapping[str, Tensor], facts: Facts) -> Int[Tensor, "3 row token"]:
    """Where text has the same number three times, and the patches of an image one time, and a row and a column each.

    What follows an image counts on from its longer side. Source: Qwen2-VL (arXiv 2409.12191), section 2.1, M-RoPE.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    made = torch.zeros(3, *ids.shape, dtype=torch.long, device=ids.device)
    side = int(facts["merged"] ** 0.5)
    grids = iter(inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else [])
    for row in range(ids.shape[0]):
        found: list[Tensor] = []
        start = 0
        for is_image, run in groupby((ids[row][mask[row]] == facts["image_token"]).tolist()):
            count = len(list(run))
            if not is_image:
                found.append((torch.arange(count) + start).expand(3, -1))
                start += count
            while is_image and count:
                frames, height, width = next(grids)
                sizes = (frames, height // side, width // side)
                axes = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
                found.append(torch.stack([axis.flatten() for axis in axes]) + start)
                start += max(sizes[1:])
                count -= found[-1].shape[1]
        if found:
            made[:, row, mask[row]] = torch.cat(found, dim=1).to(made.device)
    return made


def answered(before: Int[Tensor, "3 row token"], answers: int) -> Int[Tensor, "3 row answer"]:
    """Positions of an answer of so many tokens behind prompts that are padded on the left."""
    after = before[..., -1:].amax(0) + 1 + torch.arange(answers, device=before.device)
    return after.expand(3, -1, -1)


def lengths(position_ids: Int[Tensor, "*axis row token"]) -> Int[Tensor, " row"]:
    """How many positions each row takes."""
    last = position_ids.amax(-1)
    return (last if last.ndim == 1 else last.amax(0)) + 1
