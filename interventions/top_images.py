"""Top images: where each neuron, or each of a few, was most active, one example an image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import reads
from interventions.folds import largest
from interventions.top_activations import best_of_samples


@reads(
    "llm.mlp.act",
    over=largest(20, by="activation", distinct="image"),
    weight=batch_field("weight"),
    sample=batch_field("sample"),
    position=batch_field("position"),
)
def top_images(
    act: Float[Tensor, "*where neuron"],
    weight: Int[Tensor, "*where"],
    sample: Int[Tensor, "*where"],
    position: Int[Tensor, "*where"],
    images: Int[Tensor, " number"],
    neurons: Int[Tensor, " chosen"] | None = None,
) -> dict[str, Tensor]:
    """The images on which each neuron was most active, each once, with the question and where in it.

    As `top_activations`, but of all questions of an image the best alone is kept, and only chosen neurons are sorted.
    `top_images.folded(largest(50, by="activation", distinct="image"))` keeps 50.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`: 0 for padding, which is left out
    - sample: int64 `[*where]`, 0 or more: `batch.with_samples([...])`
    - position: int64 `[*where]`, within the sample
    - images: int64 `[number]`, the number of the image of each sample
    - neurons: int64 `[chosen]`, which neurons, -1 for none; all if left out. `per_layer(table)` has as many for every
      layer, so that a layer with fewer is filled up with -1

    Returns `activation` `[chosen, k]`, best first, and `sample`, `position` and `image` int64 `[chosen, k]`; where
    fewer than k images were seen, and of neuron -1, -inf and -1.

    Source: the top activating examples of MM_Neurons (arXiv 2311.07470) and Neuronpedia.
    """
    values = act.detach()
    if neurons is not None:
        own = neurons.to(act.device)
        values = values.index_select(-1, own.clamp(min=0)).masked_fill(own < 0, -torch.inf)
    best = best_of_samples(values, weight, sample, position)
    number = best["sample"]
    image = images.to(number.device)[number.clamp(min=0)]
    return {**best, "image": image.masked_fill(number < 0, -1)}
