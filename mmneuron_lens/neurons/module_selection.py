"""The published procedure in one module: which neurons are specific, and to which domains, from probabilities alone.

The paper names the bottom 1 % of the entropy and "a predefined threshold"; both rules, as published in code, are
written out at `select_module`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.neurons.dape import activation_probability, dape

TIE = 1e-12
"""Entropies that agree to this many nats are a tie: less is rounding of the logarithm, which differs by machine."""


@dataclass(frozen=True, eq=False)
class ModuleSelection:
    """What `select_module` finds: `mask` bool [layer, neuron, domain], `entropy` float64 [layer, neuron] in nats."""

    mask: Tensor
    entropy: Tensor
    threshold: float
    requested: int
    selected: int

    @property
    def shortfall(self) -> int:
        """How many neurons fewer than requested had a domain above the threshold."""
        return self.requested - self.selected


def select_module(
    probability: Float64[Tensor, "layer neuron domain"], fraction: float = 0.01, percentile: float = 0.95
) -> ModuleSelection:
    """The published selection in one module, from activation probabilities.

    1. threshold = the `round(percentile * layer * neuron * domain)`-th smallest of all probabilities, not interpolated;
    2. only neurons with a domain strictly above it survive (so a neuron that is never active does not);
    3. of these, the `round(fraction * layer * neuron)` lowest entropies are selected, ties by lowest (layer, neuron);
       if fewer survive, only those are selected and the rest is the shortfall;
    4. a selected neuron belongs to every domain where its probability is strictly above the threshold.

    Raises `ValueError` when a probability is outside [0, 1], or a parameter outside (0, 1].
    """
    for name, value in (("fraction", fraction), ("percentile", percentile)):
        if not 0 < value <= 1:
            raise InvalidValue(f"{name} is {value}; it must be above 0 and at most 1 (the paper: 0.01 and 0.95).")
    if probability.numel() == 0 or not bool(((probability >= 0) & (probability <= 1)).all()):
        raise InvalidValue(
            f"probabilities {tuple(probability.shape)} are empty or outside [0, 1]; give M / N per domain."
        )
    entropy = dape(probability)
    rank = max(1, round(percentile * probability.numel()))
    threshold = float(probability.flatten().kthvalue(rank).values)
    above = probability > threshold
    survivors = above.any(dim=-1).flatten().nonzero().squeeze(1)
    requested = round(fraction * entropy.numel())
    chosen = survivors[lowest_first(entropy.flatten()[survivors])[:requested]]
    mask = torch.zeros(entropy.numel(), dtype=torch.bool, device=entropy.device)
    mask[chosen] = True
    return ModuleSelection(above & mask.view_as(entropy)[..., None], entropy, threshold, requested, len(chosen))


def lowest_first(entropy: Float64[Tensor, " neuron"]) -> Int64[Tensor, " neuron"]:
    """The neurons in order of entropy; of values that are each within `TIE` of the next, the first comes first."""
    values, order = entropy.sort(stable=True)
    group = torch.zeros_like(order)
    group[1:] = (values.diff() > TIE).cumsum(0)
    return torch.empty_like(order).scatter_(0, order, group).sort(stable=True).indices


def domain_probability(
    counts: Sequence[Counts], site: str, kinds: tuple[str, ...] | None = None
) -> Float64[Tensor, "layer neuron domain"]:
    """Activation probabilities of a site, one domain after the other; `ValueError` names a domain without tokens."""
    columns = []
    for one in counts:
        active, tokens = one.total(site, kinds)
        if tokens == 0:
            raise InvalidValue(
                f"{one.domain} has no {'/'.join(kinds or ())} tokens at {site}; count it, or leave it out."
            )
        columns.append(activation_probability(active, tokens))
    return torch.stack(columns, dim=-1)
