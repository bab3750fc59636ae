"""Selectors for tests of the comparison: the published rule where it is not registered, and ones with known neurons."""

from __future__ import annotations

import torch

import mmneuron_lens.neurons.selectors  # noqa: F401
from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selection import domain_probability, select_module
from mmneuron_lens.neurons.selectors.registry import SELECTORS, Scores, selector

if "dape" not in SELECTORS:

    @selector("dape", percentile=0.95)
    def dape_of_tests(observed: Observed, percentile: float) -> Scores:
        scores: Scores = {}
        for site in observed.counts[0].active:
            probability = domain_probability(list(observed.counts), site)
            found = select_module(probability, percentile=percentile)
            scores[site] = torch.where(probability > found.threshold, -found.entropy[..., None], -torch.inf)
        return scores


if "margin" not in SELECTORS:
    selector("margin", needs=("moments",))(lambda observed: {})


def drawn_by_tests(observed: Observed, seed: int) -> Scores:
    """A random order of all neurons, which is no random draw of the comparison."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site: torch.rand(
            (active.shape[1], active.shape[3], len(observed.counts)), dtype=torch.float64, generator=generator
        )
        for site, active in observed.counts[0].active.items()
    }
