"""Ablating: neurons switched off, turned up or down, held at their mean, or given the values of other samples."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.bindings import batch_field
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


@writes("llm.mlp.post")
def amplify_neurons(
    post: Float[Tensor, "*where neuron"], neurons: Bool[Tensor, " neuron"], strength: float
) -> Float[Tensor, "*where neuron"]:
    """Turn the marked neurons up or down: z becomes (1 + strength) z.

    - post: `[*where, neuron]`, z: what the down projection is given
    - neurons: bool `[neuron]`, usually `per_layer(...)`
    - strength: 0 changes nothing, -1 switches off, below it the sign turns; a dose-response goes from -1 to 3

    Source: HONES (arXiv 2604.17941).
    """
    return torch.where(neurons, post * (1 + strength), post)


@writes("llm.mlp.post", draw=batch_field("draw"))
def resample_ablate_neurons(
    post: Float[Tensor, "*where neuron"],
    neurons: Bool[Tensor, " neuron"],
    bank: Float[Tensor, "draw neuron"],
    draw: Int[Tensor, "*where"],
) -> Float[Tensor, "*where neuron"]:
    """Give the marked neurons values that they have on other samples, whatever the samples' lengths.

    - post: `[*where, neuron]`
    - neurons: bool `[neuron]`, usually `per_layer(...)`
    - bank: `[draw, neuron]`, values at positions of other samples, usually `per_layer(...)` of `[layer, draw, neuron]`
    - draw: int64 `[*where]`, the row of the bank that each position is given, in every layer the same

    `mmneuron_lens.experiments.resampling` makes both: `bank_of(lens, batches)` and `bank.draw(batch, seed=0)`. The
    neurons of a position come from one position together, so what they have in common stays. Generated tokens have no
    draw, so it is narrowed to the prompt: `.at(steps="prompt")`.

    Source: resampling ablation, as in causal scrubbing; unlike a mean, the values are ones that occur.
    """
    return torch.where(neurons, bank[draw].to(post), post)
