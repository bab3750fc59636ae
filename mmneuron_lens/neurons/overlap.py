"""Overlap: how many neurons two methods both choose, and one method from two halves of the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.comparison import DRAWN
from mmneuron_lens.neurons.compared import NeuronSet
from mmneuron_lens.neurons.halves import on_buckets
from mmneuron_lens.neurons.observed import Observed

HALF = "half"
"""In place of another method: the same one on two halves of the data."""


def overlaps(sets: Sequence[NeuronSet]) -> list[dict[str, Any]]:
    """For every two methods, domain and fraction: how many neurons both have (`shared`) and at least one (`either`).

    Columns method, other, domain, fraction, shared, either, summed over the sites that both have.
    """
    alike: dict[tuple[str, float], list[NeuronSet]] = {}
    for one in sets:
        if one.method != DRAWN:
            alike.setdefault((one.domain, one.fraction), []).append(one)
    return [
        {
            "method": first.method,
            "other": second.method,
            "domain": domain,
            "fraction": fraction,
            **_sizes(first, second),
        }
        for (domain, fraction), some in alike.items()
        for first, second in combinations(some, 2)
    ]


def half_overlaps(first: Sequence[NeuronSet], second: Sequence[NeuronSet]) -> list[dict[str, Any]]:
    """The same of sets chosen from two halves of the data, in the same order; the other method is called "half"."""
    return [
        {"method": one.method, "other": HALF, "domain": one.domain, "fraction": one.fraction, **_sizes(one, other)}
        for one, other in zip(first, second, strict=True)
    ]


def halved(observed: Observed, seed: int = 0) -> tuple[Observed, Observed]:
    """What was observed on a random half of each domain's buckets of images, and on the other half.

    Raises `InvalidValue` for a domain with images in fewer than two buckets.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[str, Tensor] = {}
    for one in observed.counts:
        filled = torch.stack([tokens.sum(-1) > 0 for tokens in one.tokens.values()]).any(0).nonzero()[:, 0]
        if len(filled) < 2:
            raise InvalidValue(
                f"{one.domain} has images in {len(filled)} bucket; two halves need two, count more images."
            )
        order = torch.randperm(len(filled), generator=generator, device="cpu")
        chosen[one.domain] = torch.zeros(len(next(iter(one.tokens.values()))), dtype=torch.bool, device="cpu")
        chosen[one.domain][filled[order[: len(filled) // 2]]] = True
    first = torch.stack([chosen[domain] for domain in observed.domains])
    return on_buckets(observed, first), on_buckets(observed, ~first)


def _sizes(first: NeuronSet, second: NeuronSet) -> dict[str, int]:
    sites = [site for site in first.masks if site in second.masks]
    shared = sum(int((first.masks[site] & second.masks[site]).sum()) for site in sites)
    either = sum(int((first.masks[site] | second.masks[site]).sum()) for site in sites)
    return {"shared": shared, "either": either}
