"""The published method: low entropy of a neuron's activation probabilities over domains."""

from __future__ import annotations

import torch

from mmneuron_lens.artifacts.selection import in_order
from mmneuron_lens.neurons.module_selection import domain_probability, select_module
from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selectors.registry import Scores, selector


@selector(
    "dape",
    source="MMNeuron (arXiv 2406.11193), section 3.2, and its code; LAPE (arXiv 2402.16438) is the same rule over "
    "languages.",
    percentile=0.95,
)
def dape(observed: Observed, percentile: float) -> Scores:
    """Minus the entropy, in nats, in every domain where the probability is above the threshold, -inf elsewhere.

    The threshold is that of `select_module`. `select(method="dape")` goes by `select_module` itself, to the last tie.
    """
    scores: Scores = {}
    for site in in_order(observed.counts[0].active):
        probability = domain_probability(observed.counts, site)
        found = select_module(probability, percentile=percentile)
        inside = probability > found.threshold
        scores[site] = torch.where(inside, -found.entropy[..., None], -torch.inf)
    return scores
