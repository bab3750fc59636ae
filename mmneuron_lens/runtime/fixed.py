"""Fixed: weights that take no gradient while a graph takes those of values, which costs less time and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from mmneuron_lens.wire.beside import has_targets
from mmneuron_lens.wire.types import SitePlan


@contextmanager
def weights_fixed(module: torch.nn.Module, plans: Sequence[SitePlan]) -> Iterator[None]:
    """While it lasts, a backward keeps nothing for weights, nor anything before the first value that it goes to.

    Afterwards each weight takes gradients again that did before. Nothing happens where the plans take none.
    """
    held = [one for one in module.parameters() if one.requires_grad] if has_targets(plans) else []
    for one in held:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in held:
            one.requires_grad_(True)
