"""Halves: whether a method, whatever it looks at, selects the same neurons from two halves of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.controls import HalvesOverlap
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.neurons.selectors.registry import selector_named

Measured = TypeVar("Measured", Counts, Moments, Attributions)


def method_overlap(observed: Observed, method: str, splits: int = 5, seed: int = 0, **settings: Any) -> HalvesOverlap:
    """How far two halves of the buckets give the same neurons by a method; as `controls.halves_overlap` for its own.

    - settings: of `select`.

    Each domain's buckets that have something of everything the method needs are dealt into two halves, the same at
    every site. Raises `InvalidValue` for a method that looks at no data, and for a domain with fewer than two buckets.
    """
    needs = selector_named(method).needs
    if not needs:
        raise InvalidValue(f"{method} looks at no data, so other data give the same neurons.")
    filled = [_filled(observed, place, needs) for place in range(len(observed.domains))]
    for domain, own in zip(observed.domains, filled, strict=True):
        if int(own.sum()) < 2:
            raise InvalidValue(f"{domain} has data in {int(own.sum())} bucket; two halves need two, take more images.")
    generator = torch.Generator().manual_seed(seed)
    shared: dict[str, list[int]] = {}
    either: dict[str, list[int]] = {}
    for _ in range(splits):
        first, second = _dealt(filled, generator)
        one, other = (select(on_buckets(observed, half), method=method, **settings) for half in (first, second))
        for site, mask in one.masks.items():
            both = mask.any(dim=-1), other.masks[site].any(dim=-1)
            shared.setdefault(site, []).append(int((both[0] & both[1]).sum()))
            either.setdefault(site, []).append(int((both[0] | both[1]).sum()))
    whole = select(observed, method=method, **settings)
    facts = {**whole.provenance, "parameters": whole.parameters, "splits": splits, "seed": seed}
    return HalvesOverlap(whole.model, _tuples(shared), _tuples(either), facts)


def on_buckets(observed: Observed, kept: Bool[Tensor, "domain bucket"]) -> Observed:
    """What was measured as if each domain had only the images of these buckets."""

    def some(measured: tuple[Measured, ...]) -> tuple[Measured, ...]:
        return tuple(_kept(one, own) for one, own in zip(measured, kept, strict=True)) if measured else ()

    return Observed(some(observed.counts), some(observed.moments), some(observed.attributions))


def _kept(one: Measured, kept: Tensor) -> Measured:
    """The same with nothing in the other buckets: 0, or NaN where that says that there is no value."""
    changed: dict[str, Any] = {}
    for field in fields(one):
        value, fill = getattr(one, field.name), 0.0
        if f"{field.name}/" in one.undefined:
            fill = torch.nan
        if isinstance(value, Tensor):
            changed[field.name] = _masked(value, kept, fill)
        elif isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values()):
            changed[field.name] = {name: _masked(part, kept, fill) for name, part in value.items()}
    if isinstance(one, Attributions):
        changed["samples"] = int(changed["questions"].sum())
    return replace(one, **changed)


def _masked(tensor: Tensor, kept: Tensor, fill: float) -> Tensor:
    return tensor.masked_fill(~kept.view(BUCKETS, *[1] * (tensor.ndim - 1)), fill)


def _filled(observed: Observed, place: int, needs: tuple[str, ...]) -> Bool[Tensor, " bucket"]:
    """Buckets of a domain with tokens at every site counted, and something of all else that is needed."""
    own = torch.ones(BUCKETS, dtype=torch.bool, device="cpu")
    for tokens in observed.counts[place].tokens.values():
        own &= tokens.sum(-1) > 0
    if "moments" in needs:
        for tokens in observed.moments[place].tokens.values():
            own &= tokens.sum(-1) > 0
    if "attributions" in needs:
        own &= observed.attributions[place].questions > 0
    return own


def _dealt(filled: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    first = torch.zeros(len(filled), BUCKETS, dtype=torch.bool, device="cpu")
    second = torch.zeros_like(first)
    for place, own in enumerate(filled):
        buckets = own.nonzero().squeeze(1)
        order = buckets[torch.randperm(len(buckets), generator=generator, device="cpu")]
        first[place, order[: len(order) // 2]] = True
        second[place, order[len(order) // 2 :]] = True
    return first, second


def _tuples(sizes: Mapping[str, list[int]]) -> dict[str, tuple[int, ...]]:
    return {site: tuple(some) for site, some in sizes.items()}
