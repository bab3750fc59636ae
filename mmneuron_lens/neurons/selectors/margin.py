"""Margin: a neuron is specific to the domain in which its mean exceeds that of every other domain by the most."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.pooled import others_of, pooled
from mmneuron_lens.neurons.selectors.registry import Scores, selector


@selector(
    "margin",
    needs=("counts", "moments"),
    source=(
        "Of this package: (largest - second largest mean over domains) / (pooled deviation + epsilon). Contrastive "
        "selectors of this kind are published (ConAct, arXiv 2510.24942); its formula could not be read, and this is "
        "not it."
    ),
    value="post",
    epsilon=1e-6,
)
def margin(observed: Observed, *, value: str = "post", epsilon: float = 1e-6) -> Scores:
    """The mean in a domain minus the largest mean in another, over the deviation of tokens within domains.

    So only the domain with the largest mean has a score above 0.

    - value: "post", what the down projection is given, or "act"; the same where an MLP is not gated.
    - epsilon: added to the deviation, in units of the value.

    Returns scores by site; -inf in a domain without tokens at a site, and where no other domain has any.
    """
    return {
        site: _at(observed, observed.moments[0].site_of(site, value), epsilon) for site in observed.counts[0].active
    }


def _at(observed: Observed, site: str, epsilon: float) -> Float64[Tensor, "layer neuron domain"]:
    of = pooled(observed.moments, site)
    mean = of.mean.nan_to_num(-torch.inf)
    within = (of.variance * of.tokens).nansum(-1) / of.tokens.sum()
    other = torch.stack([mean[..., some].amax(-1) for some in others_of(mean.shape[-1])], -1)
    scores = (mean - other) / (within.sqrt() + epsilon)[..., None]
    return scores.masked_fill((mean == -torch.inf) | (other == -torch.inf), -torch.inf)
