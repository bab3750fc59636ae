"""Describe: what a served model is made of, by a few numbers of every weight."""

from __future__ import annotations

from typing import Any

import torch

from mmneuron_lens.wire.types import Served, WeightFacts

SAMPLED = 64
"""Values of a weight that are told as they are."""

BLOCK = 256
"""Words whose sum is weighted by their place, so that rows which change places change the checksum."""


def describe(model: Any) -> Served:
    """The kind of device of an nnsight model, and `weights_of` it; "server" where a sandbox hides its weights."""
    weights = weights_of(model._module)
    hidden = all(weight["checksum"] is None for weight in weights)
    return {"device": "server" if hidden else next(model._module.parameters()).device.type, "weights": weights}


def weights_of(module: torch.nn.Module) -> list[WeightFacts]:
    """The facts of every parameter and persistent buffer, in the model's own order."""
    found: list[WeightFacts] = []
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            continue
        flat = None if value.is_meta else value.detach().contiguous().reshape(-1)
        found.append(
            {
                "name": name,
                "shape": list(value.shape),
                "dtype": str(value.dtype).removeprefix("torch."),
                "sampled": None if flat is None else sample(flat),
                "checksum": None if flat is None else checksum(flat),
            }
        )
    return found


def sample(flat: torch.Tensor) -> list[int]:
    """The bits of `SAMPLED` values from the first to the last, as integers; of all values where there are no more."""
    count = flat.numel()
    if count > SAMPLED:
        flat = flat[torch.arange(SAMPLED, device=flat.device) * (count - 1) // (SAMPLED - 1)]
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return flat.cpu().view(kinds.get(flat.element_size(), torch.int64)).tolist()


def checksum(flat: torch.Tensor) -> int:
    """The bytes as words of 64 bits: the sum of every `BLOCK` of them times an odd number of its place, modulo 2 ** 64.

    Integers add up to the same in any order, so the device and its threads do not matter. Odd numbers have an inverse
    modulo 2 ** 64: one changed value always changes the sum. Nothing is converted, so it takes as long as reading.
    """
    data = flat.view(torch.uint8)
    whole = data.numel() // 8 * 8
    words = data[:whole]
    if words.storage_offset() % 8:
        words = words.clone()
    words = words.view(torch.int64)
    blocks = words.numel() // BLOCK * BLOCK
    rest = [words[blocks:].sum(), data[whole:].sum(dtype=torch.int64)]
    sums = torch.cat([words[:blocks].view(-1, BLOCK).sum(1), torch.stack(rest)])
    return int((sums * (2 * torch.arange(sums.numel(), device=sums.device) + 1)).sum())
