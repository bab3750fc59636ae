"""Random neurons: what any method must do better than."""

from __future__ import annotations

import torch

from mmneuron_lens.artifacts.selection import in_order
from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selectors.registry import Scores, selector


@selector("random", needs=(), source="The control of all methods.", seed=0)
def random_neurons(observed: Observed, seed: int) -> Scores:
    """A number drawn uniformly for each neuron and domain; the same seed gives the same neurons."""
    generator = torch.Generator().manual_seed(seed)
    scores: Scores = {}
    for site in in_order(observed.counts[0].active):
        _, layers, _, neurons = observed.counts[0].active[site].shape
        shape = (layers, neurons, len(observed.domains))
        scores[site] = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return scores
