"""Pooled: the moments of several domains, summed over buckets and kinds of token: means, deviations and maxima."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.moments import Moments

Each = Float64[Tensor, "layer neuron domain"]


@dataclass(frozen=True)
class Pooled:
    """Sums over the tokens of some kinds, domain by domain: all float64.

    - tokens: `[domain]`. above, sums, squares, maximum: `[layer, neuron, domain]`, as of `Moments`; NaN where a domain
      has no such token.
    """

    tokens: Float64[Tensor, " domain"]
    above: Each
    sums: Each
    squares: Each
    maximum: Each

    @property
    def mean(self) -> Each:
        """NaN where a domain has no such token."""
        return self.sums / self.tokens

    @property
    def variance(self) -> Each:
        """Over tokens, at least 0; NaN where a domain has no such token."""
        return (self.squares / self.tokens - self.mean**2).clamp_min(0)

    def rest(self) -> Pooled:
        """In place of each domain, all others together."""

        chosen = others_of(len(self.tokens))

        def summed(values: Tensor) -> Tensor:
            return torch.stack([values[..., some].nansum(-1) for some in chosen], -1)

        tokens, largest = summed(self.tokens), self.maximum.nan_to_num(-torch.inf)
        maximum = torch.stack([largest[..., some].amax(-1) for some in chosen], -1)
        maximum = torch.where(tokens > 0, maximum, torch.nan)
        return Pooled(tokens, summed(self.above), summed(self.sums), summed(self.squares), maximum)


def others_of(domains: int) -> list[list[int]]:
    """For each domain the places of all others. Raises `InvalidValue` where there are none."""
    if domains < 2:
        raise InvalidValue(f"moments are of {domains} domain; neurons are specific to one of several.")
    return [[other for other in range(domains) if other != own] for own in range(domains)]


def pooled(moments: Sequence[Moments], site: str, kinds: Callable[[str], bool] = lambda kind: True) -> Pooled:
    """The moments of each domain at a site, over all its buckets and the tokens of some kinds.

    Raises `InvalidValue` where a domain has none there, or of other kinds, layers or neurons than another.
    """
    absent = [one.domain for one in moments if site not in one.kinds]
    if absent:
        raise InvalidValue(f"the moments of {', '.join(absent)} are not of {site}; take them again with this model.")
    forms = {(one.kinds[site], tuple(one.sums[site].shape)) for one in moments}
    if len(forms) != 1:
        raise InvalidValue(f"moments at {site} are of {len(forms)} forms; take all domains' with one model.")
    chosen = [number for number, kind in enumerate(moments[0].kinds[site]) if kinds(kind)]

    def summed(name: str) -> Tensor:
        return torch.stack([getattr(one, name)[site][:, :, chosen].double().sum((0, 2)) for one in moments], -1)

    tokens = torch.stack([one.tokens[site][:, chosen].sum() for one in moments]).double()
    largest = [one.maximum[site][:, :, chosen].double().nan_to_num(-torch.inf) for one in moments]
    nothing = torch.full(moments[0].sums[site].shape[1::2], -torch.inf, dtype=torch.float64)
    maximum = torch.stack([one.amax((0, 2)) if chosen else nothing for one in largest], -1)
    return Pooled(
        tokens, summed("above"), summed("sums"), summed("squares"), torch.where(tokens > 0, maximum, torch.nan)
    )
