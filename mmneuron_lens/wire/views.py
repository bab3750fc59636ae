"""Views: the steps from what a module holds to what a site shows, and back. Whoever reads a site reads it by these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mmneuron_lens.wire.facts_types import Layer, Seeing, Step

CACHES = ("cache", "past_key_values")
"""What transformers calls the keys and values of earlier positions: from 5.24 on, and before."""


def see(value: Any, steps: Sequence[Step], seeing: Seeing) -> Shaped[Tensor, "..."]:
    """What a site shows of a module's own value, by steps from the first to the last."""
    for step in steps:
        value = shown(value, step, seeing)
    return value


def unsee(value: Shaped[Tensor, "..."], steps: Sequence[Step], held: Any, seeing: Seeing) -> Shaped[Tensor, "..."]:
    """The module's own value with what a site shows put in its place; `held` is the value as it was."""
    if not steps:
        return value
    whole = [held]
    for step in steps[:-1]:
        whole.append(shown(whole[-1], step, seeing))
    for step, before in zip(reversed(steps), reversed(whole), strict=True):
        value = unshown(value, step, before, seeing)
    return value


def shown(value: Any, step: Step, seeing: Seeing) -> Shaped[Tensor, "..."]:
    """One step of `see`."""
    if step[0] == "mask":
        return allowed(value, seeing["held"], seeing["layer"])
    if step[0] == "rows":
        return value.unflatten(0, (seeing["rows"], -1))
    if step[0] == "packed":
        return value[None]
    if step[0] == "ordered":
        return value[order_of(step[1], seeing).to(value.device).argsort()]
    if step[0] == "columns":
        return value[..., step[1] : step[2]]
    assert step[0] == "heads"
    return value.unflatten(-1, (-1, step[1]))


def unshown(value: Shaped[Tensor, "..."], step: Step, before: Any, seeing: Seeing) -> Shaped[Tensor, "..."]:
    """One step of `unsee`."""
    if step[0] == "mask":
        return forbidden(value, before)
    if step[0] == "rows":
        return value.flatten(0, 1)
    if step[0] == "packed":
        return value[0]
    if step[0] == "ordered":
        return value[order_of(step[1], seeing).to(value.device)]
    if step[0] == "columns":
        return torch.cat([before[..., : step[1]], value, before[..., step[2] :]], dim=-1)
    return value.flatten(-2)


def order_of(merged: int, seeing: Seeing) -> Int[Tensor, " position"]:
    """In which order the tower holds positions of so many patches each. Raises `ValueError` where that is not known."""
    if seeing["order"] is None:
        raise ValueError("This site holds patches in an order of its own, and the batch does not say which.")
    return seeing["order"][0, ::merged] // merged


def allowed(mask: Shaped[Tensor, "row 1 query key"] | None, held: Any, layer: Layer) -> Bool[Tensor, "row query key"]:
    """The mask that an attention layer was given as bool `[rows, queries, keys]`; None means causal."""
    positional, keywords = held
    hidden = positional[0] if positional else keywords["hidden_states"]
    rows, queries = hidden.shape[:2]
    if mask is not None:
        open_ = mask if mask.dtype == torch.bool else mask >= 0
        return open_[:, 0].expand(rows, -1, -1)
    past = sum(keywords[name].get_seq_length(layer) for name in CACHES if keywords.get(name) is not None)
    everything = torch.ones(queries, past + queries, dtype=torch.bool, device=hidden.device)
    return everything.tril(past).expand(rows, -1, -1)


def forbidden(value: Bool[Tensor, "row query key"], before: Any) -> Shaped[Tensor, "row 1 query key"]:
    """A mask of booleans in the form that attention had it in: booleans, or a number to add."""
    if before is None or before.dtype == torch.bool:
        return value[:, None]
    return torch.where(value[:, None], torch.zeros_like(before), torch.finfo(before.dtype).min)


def windowed_order(grids: Int[Tensor, "image 3"], windows: Mapping[str, int]) -> Int[Tensor, " patch"]:
    """In which order a tower with windowed attention holds the patches of images: `held = patches[order]`.

    - grids: frames, rows and columns of patches of each image.
    - windows: `merged`, patches along a side of what becomes one position, and `window`, such positions along a side.

    Patches come block by block, the blocks row by row; the tower puts the blocks of one window together, windows row
    by row, the last ones smaller. Source: Qwen2.5-VL (arXiv 2502.13923), section 2.1.
    """
    merged, window, orders, start = windows["merged"], windows["window"], [], 0
    for frames, height, width in grids.tolist():
        rows, columns = height // merged, width // merged
        blocks = torch.arange(start, start + frames * rows * columns).view(frames, rows, columns)
        for frame in blocks:
            for top in range(0, rows, window):
                for left in range(0, columns, window):
                    orders.append(frame[top : top + window, left : left + window].flatten())
        start += blocks.numel()
    blocks = torch.cat(orders)
    return (blocks[:, None] * merged**2 + torch.arange(merged**2)).flatten()
