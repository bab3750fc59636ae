"""Effect sizes: how much more often a selected neuron is active in its domain than in the others.

With many tokens nearly every neuron differs between domains at any level of significance, so significance ranks
nothing. What ranks is how much they differ, with an interval over the buckets of images. Formulas: standard statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.effect_sizes import Effect, EffectSizes, Interval
from mmneuron_lens.artifacts.selection import Selection, groups_of
from mmneuron_lens.neurons.controls import filled_cells, half_of, in_order_of, probability_of_cells
from mmneuron_lens.neurons.module_selection import select_module
from mmneuron_lens.neurons.selection import PUBLISHED

RESAMPLES = 500
MINIMUM = math.log(2)
"""The smallest log-odds that is called an effect: the odds of being active are doubled."""

ENDS = (2.5, 97.5)
"""Percentiles of the ends of an interval: 95 %."""


class Cells(NamedTuple):
    """The (domain, bucket) cells of a site: counts [cell, neuron], tokens [cell], and the domain's number [cell]."""

    active: Tensor
    tokens: Tensor
    labels: Tensor

    def some(self, chosen: Tensor) -> Cells:
        return Cells(self.active[chosen], self.tokens[chosen], self.labels[chosen])


class Redrawn(NamedTuple):
    """Effects of memberships, [1 + resamples, membership], the data's own in the first row.

    - resampled: whether every domain has buckets enough for the other rows to differ from it.
    """

    log_odds: Tensor
    difference: Tensor
    resampled: bool


def log_odds(
    active: Float64[Tensor, "*at"], tokens: Float64[Tensor, "*at"],
    other_active: Float64[Tensor, "*at"], other_tokens: Float64[Tensor, "*at"],
) -> Float64[Tensor, "*at"]:  # fmt: skip
    """log((a + 1/2) / (n - a + 1/2)) - log((b + 1/2) / (m - b + 1/2)): the log-odds ratio of a of n against b of m.

    The halves (Haldane 1955, Anscombe 1956) keep it finite where a neuron is active on no token or on all of them.
    """
    own = torch.log((active + 0.5) / (tokens - active + 0.5))
    return own - torch.log((other_active + 0.5) / (other_tokens - other_active + 0.5))


def effect_sizes(
    counts: Sequence[Counts], selection: Selection, resamples: int = RESAMPLES, seed: int = 0
) -> EffectSizes:
    """Of every selected neuron and domain it belongs to: log-odds of being active there against all other domains.

    - resamples, seed: of the bootstrap, which redraws each domain's buckets that have tokens, with replacement.

    The tokens of the other domains are pooled. A selection finds what is extreme in its own data, so the same is also
    measured held out: neurons are selected in one half of the buckets and measured in the other, both ways; where
    domains mean nothing, that is 0. Of a selection by another method than the published one nothing is held out.

    Raises `InvalidValue` when the selection was not made from these counts, or a domain has tokens in fewer than two
    buckets.
    """
    ordered = in_order_of(counts, selection)
    own: dict[str, Redrawn] = {}
    held_out: dict[str, list[Redrawn]] = {}
    members: dict[str, Tensor] = {}
    for site, mask in selection.masks.items():
        cells = Cells(*filled_cells(ordered, site, selection.parameters["kinds"][site]))
        generator = torch.Generator().manual_seed(seed)
        members[site] = mask.nonzero()
        own[site] = _measured(cells, mask, resamples, generator)
        half = half_of(cells.labels, selection.domains, site, generator)
        again = (half, ~half) if selection.parameters.get("method", PUBLISHED) == PUBLISHED else ()
        held_out[site] = [
            _measured(cells.some(~chosen), _selected(cells.some(chosen), selection, mask), resamples, generator)
            for chosen in again
        ]
    effects = {
        name: _effect([own[site] for site in sites], [one for site in sites for one in held_out[site]])
        for name, sites in groups_of(selection.masks).items()
    }
    measured = {site: measured_columns(drawn) for site, drawn in own.items()}
    facts = {**selection.provenance, "parameters": selection.parameters, "resamples": resamples, "seed": seed}
    return EffectSizes(selection.model, selection.domains, members, measured, effects, MINIMUM, facts)


def _selected(cells: Cells, selection: Selection, mask: Tensor) -> Tensor:
    """The mask, [layer, neuron, domain], that the selection's rule gives on these cells alone."""
    given = selection.parameters
    probability = probability_of_cells(*cells, tuple(mask.shape))
    return select_module(probability, given["fraction"], given["percentile"]).mask


def _measured(cells: Cells, mask: Tensor, resamples: int, generator: torch.Generator) -> Redrawn:
    """The effects of the memberships in a mask, on these cells and on cells redrawn within each domain."""
    neuron, domain = mask.flatten(0, 1).nonzero().unbind(1)
    return redrawn_effects(cells, neuron, domain, mask.shape[-1], resamples, generator)


def redrawn_effects(
    cells: Cells,
    neuron: Int64[Tensor, " membership"],
    domain: Int64[Tensor, " membership"],
    domains: int,
    resamples: int,
    generator: torch.Generator,
) -> Redrawn:
    """The effects of neurons in a domain each, on these cells and on cells redrawn within each domain.

    - neuron: a place along the cells' neurons, all layers in one row.
    - domain: the number of the domain.
    """
    chosen, place = neuron.unique(return_inverse=True)
    weights = _weights(cells.labels, resamples, generator)
    member = torch.nn.functional.one_hot(cells.labels, domains).double()
    tokens = weights @ (cells.tokens[:, None] * member)
    # [draw, neuron, domain]: the sum over cells of a domain of how often each was drawn times its count.
    active = torch.stack([(weights * part) @ cells.active[:, chosen] for part in member.T], dim=-1)
    a, n = active[:, place, domain], tokens[:, domain]
    b, m = active.sum(-1)[:, place] - a, tokens.sum(-1, keepdim=True) - n
    buckets = torch.bincount(cells.labels, minlength=domains)
    return Redrawn(log_odds(a, n, b, m), a / n - b / m, bool((buckets > 1).all()))


def probability_ends(
    cells: Cells, neuron: Int64[Tensor, " neuron"], domains: int, resamples: int, generator: torch.Generator
) -> Float64[Tensor, "end domain neuron"]:
    """Both ends of the 95 % interval of each neuron's activation probability in each domain, its buckets redrawn.

    - neuron: a place along the cells' neurons, all layers in one row.

    NaN for a domain with tokens in fewer than two buckets.
    """
    weights = _weights(cells.labels, resamples, generator)[1:]
    found = torch.full((2, domains, len(neuron)), math.nan, dtype=torch.float64, device="cpu")
    for domain in range(domains):
        own = cells.labels == domain
        if int(own.sum()) < 2 or not resamples:
            continue
        some = weights[:, own]
        drawn = (some @ cells.active[own][:, neuron]) / (some @ cells.tokens[own])[:, None]
        found[:, domain] = torch.from_numpy(numpy.percentile(drawn.numpy(), ENDS, axis=0))
    return found


def _weights(labels: Int64[Tensor, " cell"], resamples: int, generator: torch.Generator) -> Tensor:
    """How often each cell is in each resample, [1 + resamples, cell]; once each in the first row."""
    weights = torch.ones(1 + resamples, len(labels), dtype=torch.float64, device="cpu")
    for number in labels.unique():
        cells = (labels == number).nonzero().squeeze(1)
        drawn = torch.randint(0, len(cells), (resamples, len(cells)), generator=generator, device="cpu")
        weights[1:, cells] = torch.nn.functional.one_hot(drawn, len(cells)).sum(1).double()
    return weights


def measured_columns(drawn: Redrawn) -> Tensor:
    """Log-odds, the ends of its interval, and the difference: [membership, 4]."""
    low, high = _ends(drawn)
    return torch.stack([drawn.log_odds[0], torch.from_numpy(low), torch.from_numpy(high), drawn.difference[0]], dim=-1)


def _ends(drawn: Redrawn) -> tuple[numpy.ndarray, numpy.ndarray]:  # type: ignore[type-arg]
    redrawn = drawn.log_odds[1:].numpy()
    if not drawn.resampled or not len(redrawn):
        nothing = numpy.full(drawn.log_odds.shape[1], math.nan)
        return nothing, nothing
    low, high = numpy.percentile(redrawn, ENDS, axis=0)
    return low, high


def _effect(own: Sequence[Redrawn], held_out: Sequence[Redrawn]) -> Effect:
    """The medians of several sites together."""
    lows = numpy.concatenate([_ends(one)[0] for one in own])
    intervals = bool(len(lows)) and all(one.resampled for one in own)
    return {
        "memberships": len(lows),
        "log_odds": _median([one.log_odds for one in own], all(one.resampled for one in own)),
        "difference": _median([one.difference for one in own], all(one.resampled for one in own)),
        "held_out": _median([one.log_odds for one in held_out], all(one.resampled for one in held_out)),
        "above": float((lows > MINIMUM).mean()) if intervals else None,
    }


def _median(drawn: Sequence[Tensor], resampled: bool) -> Interval:
    if not drawn:
        return {"value": None, "low": None, "high": None}
    values = torch.cat(list(drawn), dim=1).numpy()
    if not values.shape[1]:
        return {"value": None, "low": None, "high": None}
    value, *redrawn = numpy.median(values, axis=1).tolist()
    if not resampled or len(redrawn) < 2:
        return {"value": value, "low": None, "high": None}
    low, high = numpy.percentile(redrawn, ENDS).tolist()
    return {"value": value, "low": low, "high": high}
