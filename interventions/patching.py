"""Patching: activations from one input put into another."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor

from interventions.decorators import rewires


@rewires("llm.residual")
def patch_activations(value: Shaped[Tensor, "*all"], source: Shaped[Tensor, "*all"]) -> Shaped[Tensor, "*all"]:
    """Take the value which this site and layer had on the paired source batch.

    - value: of any shape
    - source: of the same shape

    Narrow it with `.at(layers=, positions=)` to patch one place; a sweep over both is the heat map of
    activation patching.
    """
    return source.to(value)
