"""Attribution: how much the log-probability of a domain's right answers rests on each neuron."""

from __future__ import annotations

import torch

from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selectors.registry import Scores, above_zero, selector


@selector(
    "attribution",
    needs=("attributions",),
    source="Attribution patching (Nanda 2023); for neurons arXiv 2506.09047, averaged over a domain's questions. "
    "Whether a neuron's value or its size is ranked was unsure there; the value is the default.",
    signed=True,
    contrast=False,
)
def attribution(observed: Observed, signed: bool, contrast: bool) -> Scores:
    """The mean attribution per question of the domain, in nats; at 0 and below never taken.

    - signed: rank by the value, so that the answer's log-probability falls, to first order, without the neuron; else by
      its size, whichever way the neuron pushes.
    - contrast: less the mean of the other domains, so that a neuron on which every domain rests counts little. Not
      published.
    """
    scores: Scores = {}
    for site in observed.attributions[0].attribution:
        mean = torch.stack([one.per_question(site) for one in observed.attributions], dim=-1)
        mean = mean if signed else mean.abs()
        if contrast:
            mean = mean - (mean.sum(-1, keepdim=True) - mean) / (mean.shape[-1] - 1)
        scores[site] = above_zero(mean)
    return scores
