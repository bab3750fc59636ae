"""Ablating: switching neurons off, turning them up or down, or holding them at their mean."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interventions.decorators import writes


@writes("llm.mlp.act")
def zero_neurons(
    act: Float[Tensor, "*where neuron"], neurons: Bool[Tensor, " neuron"]
) -> Float[Tensor, "*where neuron"]:
    """Switch the marked neurons off: their activation becomes 0 (section 4.2.2).

    - act: `[*where, neuron]`
    - neurons: bool `[neuron]`, usually `per_layer(...)`
    """
    return act.masked_fill(neurons, 0)


@writes("llm.mlp.act")
def scale_neurons(
    act: Float[Tensor, "*where neuron"], neurons: Bool[Tensor, " neuron"], factor: float
) -> Float[Tensor, "*where neuron"]:
    """Multiply the activation of the marked neurons.

    - act: `[*where, neuron]`
    - neurons: bool `[neuron]`, usually `per_layer(...)`
    - factor: 0 switches off, 1 changes nothing
    """
    return torch.where(neurons, act * factor, act)


@writes("llm.mlp.act")
def mean_ablate_neurons(
    act: Float[Tensor, "*where neuron"], neurons: Bool[Tensor, " neuron"], mean: Float[Tensor, " neuron"]
) -> Float[Tensor, "*where neuron"]:
    """Hold the marked neurons at their mean.

    - act: `[*where, neuron]`
    - neurons: bool `[neuron]`, usually `per_layer(...)`
    - mean: `[neuron]`, for instance the result of `mean_activation` as `per_layer(...)`
    """
    return torch.where(neurons, mean.to(act), act)
