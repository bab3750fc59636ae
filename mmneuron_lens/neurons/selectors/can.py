"""CAN: the product of gradient and activation, by size."""

from __future__ import annotations

import torch

from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selectors.registry import Scores, above_zero, selector


@selector(
    "can",
    needs=("attributions",),
    source="arXiv 2512.00918, whose page gives the mean of |dL/da|^alpha * |a| and no more: its alpha is not known to "
    "us (1 unless attributions were taken with another), nor whether the mean is over tokens or samples, which changes "
    "no rank within a module and domain; L is the log-probability of the right answer here.",
)
def can(observed: Observed) -> Scores:
    """The mean over the domain's tokens of |gradient|^alpha * |activation|; at 0 never taken.

    alpha is that of the attributions: `mmneuron select --method can --alpha 0.5` takes them with another.
    """
    sites = observed.attributions[0].strength
    return {
        site: above_zero(torch.stack([one.per_token(site) for one in observed.attributions], dim=-1)) for site in sites
    }
