"""Sample activations: chosen neurons at every position of a sample, for a map over its picture."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import reads


@reads(
    "llm.mlp.act",
    over="list",
    weight=batch_field("weight"),
    sample=batch_field("sample"),
    position=batch_field("position"),
)
def sample_activations(
    act: Float[Tensor, "*where neuron"],
    weight: Int[Tensor, "*where"],
    sample: Int[Tensor, "*where"],
    position: Int[Tensor, "*where"],
    neurons: Int[Tensor, " pair"],
    samples: Int[Tensor, " pair"],
    width: int,
) -> Float[Tensor, "pair width"]:
    """The activation of a neuron at every position of a sample, for as many pairs of both as are asked.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`: 0 for padding, which is left out
    - sample: int64 `[*where]`: `batch.with_samples([...])`
    - position: int64 `[*where]`, within the sample
    - neurons, samples: int64 `[pair]`, bound with `per_layer`; where a layer has fewer pairs, the sample is -1
    - width: how many positions a sample has at most; later ones are left out

    Returns float32 `[pair, width]`, NaN where a sample has no such position.
    """
    values = act.detach().flatten(0, weight.ndim - 1).index_select(-1, neurons.to(act.device)).float()
    place = position.flatten()
    own = (sample.flatten()[None] == samples.to(act.device)[:, None]) & (weight.flatten() > 0)
    # A column more takes what belongs to other samples.
    column = torch.where(own & (place < width), place, width)
    held = torch.full((len(neurons), width + 1), torch.nan, dtype=torch.float32, device=act.device)
    return held.scatter(1, column, values.T)[:, :width]
