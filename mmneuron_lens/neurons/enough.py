"""Enough: when counting more of a domain would hardly change which neurons are selected for it.

The rule, whole:
1. Domains grow together, in rounds (`rounds`): a selection needs all of them. Images come in an order that is a pure
   function of the corpus, so every bucket grows.
2. After each round the buckets of each domain are dealt into two halves, `SPLITS` times, and the published selection is
   made from each half. A domain's overlap is the Jaccard index of its neurons in the two, all modules together.
3. Its interval says how far chance may have made it: the variance over the deals and, by the jackknife, that which
   comes of the buckets, the same deals again without each bucket in turn (Efron and Stein 1981).
4. A domain is enough when the lower end of the interval has reached the wanted value at `LOOKS` looks in a row.

Each half has half of the data, so the overlap of all that was counted with as much other data is no lower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.digits import interval
from mmneuron_lens.neurons.selection import select_module

SPLITS = 8
"""Random deals of the buckets into halves."""

LOOKS = 2
"""Looks in a row that must reach the value."""

FIRST, GROWTH = 1 / 32, 1.3
"""The share of each domain's images in the first round, and how much each later look has of the one before."""

LEAST_IMAGES = 32
"""Images of the smallest domain in the first round, as far as it has them."""

LEAST_BUCKETS = 4
"""Buckets with tokens that a domain needs: without any one of them both halves still have one."""

WIDTH = 1.96
"""Standard errors on each side of a 95 % interval."""


@dataclass(frozen=True)
class OverlapInterval:
    """The mean Jaccard index of a domain's neurons in two halves of the data, and its 95 % interval, within [0, 1]."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return interval(self.mean, self.low, self.high)


@dataclass(frozen=True)
class EnoughRule:
    """What must be reached, and of which selection.

    - overlap: above 0, at most 1.
    - fraction, percentile, kinds: of `select`.
    - seed: of the deals.

    Raises `InvalidValue` for an overlap that cannot be.
    """

    overlap: float
    fraction: float = 0.01
    percentile: float = 0.95
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1:
            raise InvalidValue(f"until is {self.overlap}; it is an overlap of halves, above 0 and at most 1, like 0.9.")

    def facts(self) -> dict[str, Any]:
        """Everything that decides when counting stops, as JSON."""
        rule = {"splits": SPLITS, "looks": LOOKS, "first": FIRST, "growth": GROWTH, "least images": LEAST_IMAGES}
        own = {"overlap": self.overlap, "fraction": self.fraction, "percentile": self.percentile, "seed": self.seed}
        return {**own, "kinds": {site: list(kinds) for site, kinds in self.kinds.items()}, **rule}


def rounds(images: Mapping[str, int]) -> list[dict[str, int]]:
    """How many images of each domain have been counted after each round; all of them after the last.

    - images: of each domain, at least one.
    """
    smallest = min(images.values())
    share, made = max(FIRST, min(1.0, LEAST_IMAGES / smallest)), list[dict[str, int]]()
    while share < 1:
        made.append({domain: math.ceil(share * count) for domain, count in images.items()})
        share *= GROWTH
    return [*made, dict(images)]


def is_enough(looks: Sequence[OverlapInterval | None], overlap: float) -> bool:
    """Whether the last `LOOKS` looks at a domain reached the value with the lower ends of their intervals."""
    last = looks[-LOOKS:]
    return len(last) == LOOKS and all(one is not None and one.low >= overlap for one in last)


def overlaps(counts: Sequence[Counts], rule: EnoughRule) -> dict[str, OverlapInterval | None]:
    """Each domain's overlap of halves; None for all where a domain has too few buckets, or for one without neurons.

    - counts: of two or more domains, one each, of the same model and sites.
    """
    deals = _deals(counts, rule)
    if deals is None:
        return {one.domain: None for one in counts}
    without = [None, *range(BUCKETS)]
    # [deal, bucket that is left out, domain]: neurons in both halves, and in either.
    shared = torch.zeros(SPLITS, len(without), len(counts), dtype=torch.float64, device="cpu")
    either = torch.zeros_like(shared)
    for site in counts[0].active:
        cells = [one.per_bucket(site, rule.kinds.get(site)) for one in counts]
        for deal in range(SPLITS):
            for place, bucket in enumerate(without):
                first, second = (_membership(cells, half, bucket, rule) for half in (deals[deal], ~deals[deal]))
                shared[deal, place] += (first & second).sum((0, 1))
                either[deal, place] += (first | second).sum((0, 1))
    # Deals in which neither half gives the domain a neuron say nothing.
    jaccard = (shared / either).nanmean(0)
    spread = (shared / either)[:, 0]
    return {one.domain: _interval(jaccard[:, number], spread[:, number]) for number, one in enumerate(counts)}


def _deals(counts: Sequence[Counts], rule: EnoughRule) -> Tensor | None:
    """Bool [deal, domain, bucket]: the first half; None where a domain has tokens in too few buckets."""
    generator = torch.Generator().manual_seed(rule.seed)
    first = torch.zeros(SPLITS, len(counts), BUCKETS, dtype=torch.bool, device="cpu")
    filled = [_filled(one, rule) for one in counts]
    if min(map(len, filled)) < LEAST_BUCKETS:
        return None
    for deal in range(SPLITS):
        for number, buckets in enumerate(filled):
            order = torch.randperm(len(buckets), generator=generator, device="cpu")
            first[deal, number, buckets[order[: len(buckets) // 2]]] = True
    return first


def _filled(counts: Counts, rule: EnoughRule) -> Tensor:
    """The buckets that have tokens at every site."""
    tokens = [counts.per_bucket(site, rule.kinds.get(site))[1] > 0 for site in counts.active]
    return torch.stack(tokens).all(0).nonzero().squeeze(1)


def _membership(cells: Sequence[tuple[Tensor, Tensor]], half: Tensor, without: int | None, rule: EnoughRule) -> Tensor:
    """Bool [layer, neuron, domain]: what the half of each domain's buckets selects, one bucket apart."""
    columns: list[Float64[Tensor, "layer neuron"]] = []
    for (active, tokens), chosen in zip(cells, half, strict=True):
        buckets = [number for number in chosen.nonzero().squeeze(1).tolist() if number != without]
        columns.append(active[buckets].sum(0).double() / tokens[buckets].sum().double())
    return select_module(torch.stack(columns, dim=-1), rule.fraction, rule.percentile).mask


def _interval(jaccard: Tensor, spread: Tensor) -> OverlapInterval | None:
    """From the mean over the deals, [all buckets, then without each], and each deal's own with all buckets."""
    if not bool(jaccard.isfinite().all()):
        return None
    whole, left = float(jaccard[0]), jaccard[1:]
    buckets = (BUCKETS - 1) / BUCKETS * float((left - left.mean()).square().sum())
    own = spread[spread.isfinite()]
    deals = float(own.var()) / len(own) if len(own) > 1 else 0.0
    reach = WIDTH * math.sqrt(buckets + deals)
    return OverlapInterval(whole, max(0.0, whole - reach), min(1.0, whole + reach))
