"""MINER: neurons that are important to a domain, by their mean and largest activation among those of their layer."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selectors.registry import Scores, selector

_SOURCE = """MINER (arXiv 2410.04819), as its authors' code writes it. There, of each sample, modality and layer, the
probability of activity, mean, maximum and two attention-weighted sums of the activations are each scaled from 0 to 1
over the layer's neurons, averaged over samples, and weighed by 0, .25, .25, .5 and 0; a modality's set is the top 2 %
of all neurons. Here, a bucket of images takes the place of a sample, for moments keep no samples apart; the
attention-weighted terms are left out, for they need the attention of each sample, and the other weights are those of
the code over their sum; a domain's score is the mean over the kinds of token it has. It asks how important a neuron is
to a domain, not whether it is more so than to others."""


@selector("miner", needs=("counts", "moments"), source=_SOURCE, value="act", probability=0.0, mean=0.25, maximum=0.25)
def miner(
    observed: Observed, *, value: str = "act", probability: float = 0.0, mean: float = 0.25, maximum: float = 0.25
) -> Scores:
    """The weighted importance of each neuron, averaged over buckets and then over kinds of token.

    - value: "act", the activation, as there; or "post", what the down projection is given.
    - probability, mean, maximum: weights, which are divided by their sum. What was unsure is told in the selector's
      `source`.

    Returns scores by site, from 0 to 1; -inf in a domain without tokens at a site. A layer whose neurons are all equal
    in something has 0 there. Raises `InvalidValue` for weights below 0, or all 0.
    """
    weights = {"positive": probability, "sums": mean, "maximum": maximum}
    if min(weights.values()) < 0 or not any(weights.values()):
        raise InvalidValue(
            f"miner: weights {probability:g}, {mean:g} and {maximum:g} are not 0 or more with one above."
        )
    first = observed.moments[0]
    return {
        site: torch.stack([_in_domain(one, first.site_of(site, value), weights) for one in observed.moments], -1)
        for site in observed.counts[0].active
    }


def _in_domain(moments: Moments, site: str, weights: dict[str, float]) -> Float64[Tensor, "layer neuron"]:
    tokens = moments.tokens[site].double()
    seen, total = tokens[:, None, :, None], sum(weights.values())
    held = {name: getattr(moments, name)[site].double() for name in weights}
    found = {name: value if name == "maximum" else value / seen for name, value in held.items()}
    shape = held["sums"].shape
    scaled = torch.zeros(shape, dtype=torch.float64)
    for name, value in found.items():
        scaled += weights[name] / total * _scaled(value.nan_to_num(0))
    scaled = scaled.masked_fill(seen == 0, torch.nan)
    # Over the buckets that have tokens of a kind, then over the kinds that have any.
    return scaled.nanmean(0).nanmean(1).nan_to_num(-torch.inf)


def _scaled(values: Float64[Tensor, "bucket layer kind neuron"]) -> Float64[Tensor, "bucket layer kind neuron"]:
    """From 0, the least neuron of a layer, to 1, its largest; 0 where all are equal."""
    least, most = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return torch.where(most > least, (values - least) / (most - least), 0.0)
