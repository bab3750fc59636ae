"""Domain activation probability entropy (section 3.2, equations 4 to 7)."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from interventions.errors import InvalidValue


def activation_probability(
    active: Int64[Tensor, "*where neuron"], tokens: int | Int64[Tensor, " ..."]
) -> Float64[Tensor, "*where neuron"]:
    """p = M / N in float64 (eq. 4): how often a neuron was active, over how many tokens it saw.

    `tokens` is a number, or a tensor that broadcasts against `active`. Raises `ValueError` when there are no tokens:
    a probability over nothing is undefined, not zero.
    """
    total = torch.as_tensor(tokens, device=active.device)
    if bool((total <= 0).any()):
        raise InvalidValue(
            f"activation probability over {int(total.min())} tokens is undefined; count some tokens first."
        )
    return active.double() / total.double()


def dape(probability: Float64[Tensor, "*where domain"]) -> Float64[Tensor, "*where"]:
    """The entropy, in nats, of a neuron's activation probabilities normalised to sum to one over the domains.

    Equations 5 to 7 with p' in eq. 7, as the procedure needs (the paper prints p there); 0 log 0 is 0, so the value
    lies between 0 (one domain only) and log(domains). A neuron that is active in no domain has no distribution to
    normalise (eq. 6 divides by zero): its entropy is NaN, and no selection ever takes it.

    The domains are put in order of size first, so that neurons with the same probabilities in another order of
    domains get the same entropy to the last bit.
    """
    ordered = probability.sort(dim=-1).values
    share = ordered / ordered.sum(dim=-1, keepdim=True)
    return torch.special.entr(share).sum(dim=-1).clamp_min(0.0)
