"""Activity: how strongly each neuron is active in each domain."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float64
from torch import Tensor

from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.neurons.pooled import pooled


def activity(moments: Sequence[Moments], site: str) -> dict[str, Float64[Tensor, "layer neuron domain"]]:
    """The mean and the largest value of each neuron of a site in each domain, over all kinds of token.

    - moments: of one model, one a domain. site: whose neurons are counted, `llm.mlp.act`.

    Returns `mean_act`, `max_act` of the activation, and `mean_post`, `max_post` of what the down projection is given,
    which is the same where the MLP is not gated; float64 `[layer, neuron, domain]`, NaN where a domain has no token.
    Raises `InvalidValue` for moments that are not alike.
    """
    found: dict[str, Float64[Tensor, "layer neuron domain"]] = {}
    for value in ("act", "post"):
        of = pooled(moments, moments[0].site_of(site, value))
        found |= {f"mean_{value}": of.mean, f"max_{value}": of.maximum}
    return found
