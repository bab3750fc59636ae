"""Membership: which neurons a method selects, and for which domains, from scores."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64
from torch import Tensor


def members(scores: Float64[Tensor, "layer neuron domain"], fraction: float) -> Bool[Tensor, "layer neuron domain"]:
    """As many of every domain's best neurons as name `round(fraction * all)` different neurons of the module together.

    1. In each domain neurons are ranked by their score there, ties by lowest (layer, neuron); those at -inf have no
       rank.
    2. Neurons are taken by their best rank in any domain, ties by lowest (layer, neuron), until there are
       `round(fraction * all)`, or no more that have one.
    3. A neuron that was taken belongs to every domain where its rank is no worse than that of the last one taken; where
       there were no more to take, to every domain where it has one.

    So a module gives as many neurons as by the published rule, every domain is asked for as many, and scores need not
    have the same scale in two domains.
    """
    flat = scores.flatten(0, 1)
    neurons = len(flat)
    order = flat.sort(dim=0, descending=True, stable=True).indices
    places = torch.arange(neurons, device=flat.device)[:, None].expand_as(order)
    rank = torch.empty_like(order).scatter_(0, order, places)
    rank[flat == -torch.inf] = neurons
    best = rank.min(dim=-1).values
    wanted = round(fraction * neurons)
    taken = best.sort(stable=True).indices[:wanted]
    taken = taken[best[taken] < neurons]
    last = int(best[taken[-1]]) if len(taken) == wanted > 0 else neurons - 1
    mask = torch.zeros_like(rank, dtype=torch.bool)
    mask[taken] = rank[taken] <= last
    return mask.view_as(scores)
