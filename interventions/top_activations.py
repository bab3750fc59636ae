"""Top activations: where each neuron was most active: the examples that show what it may stand for."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import reads
from interventions.folds import largest


@reads(
    "llm.mlp.act",
    over=largest(20, by="activation", distinct="sample"),
    weight=batch_field("weight"),
    sample=batch_field("sample"),
    position=batch_field("position"),
)
def top_activations(
    act: Float[Tensor, "*where neuron"],
    weight: Int[Tensor, "*where"],
    sample: Int[Tensor, "*where"],
    position: Int[Tensor, "*where"],
) -> dict[str, Tensor]:
    """The samples in which each neuron was most active, each once, and where in them.

    The 20 best are kept; `top_activations.folded(largest(50, by="activation", distinct="sample"))` keeps 50, and
    without `distinct` still one a sample and batch. Of equal activations in a sample, the first position is kept. A
    sample with an activation of a neuron that is not a number has no entry for that neuron: count `count_not_finite`
    beside it.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`: 0 for padding, which is left out
    - sample: int64 `[*where]`, 0 or more
    - position: int64 `[*where]`, within the sample

    Returns `activation` `[neuron, k]`, best first, and `sample` and `position` int64 `[neuron, k]`; where fewer than k
    samples were seen, -inf, -1 and -1. These are the top activating
    examples of MM_Neurons and Neuronpedia.
    """
    return best_of_samples(act.detach(), weight, sample, position)


def best_of_samples(
    act: Float[Tensor, "*where neuron"],
    weight: Int[Tensor, "*where"],
    sample: Int[Tensor, "*where"],
    position: Int[Tensor, "*where"],
) -> dict[str, Tensor]:
    """Of each neuron the largest activation in every sample: `activation`, `sample` and `position` `[neuron, sample]`.

    One column that is absent where nothing counts.
    """
    values, numbers, places = act.flatten(0, weight.ndim - 1), sample.flatten(), position.flatten()
    spans = _spans(numbers, weight.flatten())
    if not spans:
        nothing = torch.full((*values.shape[1:], 1), -1, dtype=torch.int64, device=act.device)
        return {
            "activation": torch.full_like(nothing, -torch.inf, dtype=act.dtype),
            "sample": nothing,
            "position": nothing,
        }
    # Of several largest, the index is that of the first.
    best = [values[start:stop].max(0) for start, stop in spans]
    starts = torch.tensor([start for start, _ in spans], device=act.device)
    activation, index = (torch.stack(some, -1) for some in zip(*best, strict=True))
    return {
        "activation": activation,
        "sample": numbers[starts].expand_as(index),
        "position": places[index + starts],
    }


def _spans(sample: Int[Tensor, " position"], weight: Int[Tensor, " position"]) -> list[tuple[int, int]]:
    """Start and end of each stretch of real positions of one sample."""
    if type(sample) is not Tensor:
        # Shapes are proved on tensors without values; what is kept of the spans has the same shape for any number.
        return [(0, len(sample))]
    own = sample.masked_fill(weight == 0, -1)
    changes = cast("list[int]", ((own[1:] != own[:-1]).nonzero()[:, 0] + 1).tolist())  # pyright: ignore[reportUnknownMemberType]
    edges = [0, *changes, len(own)]
    kept = cast("list[int]", own[edges[:-1]].tolist()) if len(own) else []  # pyright: ignore[reportUnknownMemberType]
    return [(start, stop) for start, stop, one in zip(edges, edges[1:], kept, strict=False) if one >= 0]
