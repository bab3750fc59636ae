"""Extremes: the largest activation of each neuron."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import reads


@reads("llm.mlp.act", over="max", weight=batch_field("weight"))
def maximum_activation(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> Float[Tensor, " neuron"]:
    """The largest activation of each neuron over positions. Where one is NaN, so is the result.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`: 0 for padding, which is left out

    Returns `[neuron]`, of the dtype of `act`; -inf where no position counts.
    """
    return act.detach().masked_fill((weight == 0)[..., None], -torch.inf).flatten(0, -2).amax(0)
