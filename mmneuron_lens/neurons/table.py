"""The table of neurons: what is known of each, in one row."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, cast

import polars as pl
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.artifacts.selection import Selection, module_of, probability_columns
from mmneuron_lens.neurons.activity import activity
from mmneuron_lens.neurons.controls import filled_cells, in_order_of, probability_of_cells
from mmneuron_lens.neurons.effects import (
    RESAMPLES,
    Cells,
    log_odds,
    measured_columns,
    probability_ends,
    redrawn_effects,
)
from mmneuron_lens.neurons.observed import Observed, observed

Of = Literal["selected", "all"]

_CHUNK = 4096
"""Neurons whose bootstrap is held at a time: 500 resamples of 5 domains take 80 MiB."""


class Chosen(NamedTuple):
    """Neurons of a site: layers [neuron] and indices [neuron]."""

    layers: Int64[Tensor, " neuron"]
    neurons: Int64[Tensor, " neuron"]


def neuron_table(
    seen: Observed, selection: Selection, of: Of = "selected", *, resamples: int = RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """A row per neuron, in the order of site, layer and neuron.

    - seen: what was measured; its counts are those that the selection was made from.
    - of: "selected", or "all" of the model's neurons.
    - resamples, seed: of the bootstrap over buckets, as of `effect_sizes`.

    Columns: model, module, site, layer, neuron, selected, domains (those it belongs to), domain (of these, or of all
    where it belongs to none, the one with the largest log-odds), entropy (nats, null if never active), `p_DOMAIN` and
    `p_DOMAIN_KIND` (activation probability, of all tokens of the selection and of those of one kind), `p_DOMAIN_low`
    and `p_DOMAIN_high` (the ends of its 95 % interval, by a bootstrap over the domain's buckets), log_odds of
    `domain` against all others with the ends of its 95 % interval, log_odds_low and log_odds_high (null where a domain
    has tokens in fewer than two buckets), difference (of the two probabilities), f, reaches_logits (null where that is
    not known), mean_act, max_act, mean_post, max_post (in `domain`; null without moments), attribution (in nats: the
    mean over the questions of `domain` of activation times gradient of the answer's log-probability; null without
    attributions), attribution_rank (the share of the module's neurons whose attribution is smaller, by magnitude).

    f is the F statistic over buckets of each domain, [sum_d n_d (p_d - p)^2 / (k - 1)] / [sum_db n_db (p_db - p_d)^2 /
    (B - k)]; with many tokens it is large for nearly every neuron, so it ranks nothing.

    Raises `InvalidValue` for counts that the selection was not made from, `UnknownName` for another `of`.
    """
    if of not in ("selected", "all"):
        raise InvalidValue(unknown("neurons", of, ["selected", "all"]))
    counts = in_order_of(seen.counts, selection)
    seen = observed(counts, seen.moments, seen.attributions)
    frames = [_rows(seen, selection, site, of, resamples, seed) for site in selection.masks]
    table = pl.concat(frames, how="diagonal")
    # Kinds of token that a later site has first, beside those of the others.
    last = table.columns.index("log_odds")
    kinds = [one for one in table.columns[last:] if one.startswith("p_")]
    return table.select(*table.columns[:last], *kinds, *(one for one in table.columns[last:] if one not in kinds))


def _rows(seen: Observed, selection: Selection, site: str, of: Of, resamples: int, seed: int) -> pl.DataFrame:
    mask = selection.masks[site]
    member = mask.any(dim=-1)
    chosen = Chosen(*(member if of == "selected" else torch.ones_like(member)).nonzero().unbind(1))
    kinds = tuple(selection.parameters["kinds"][site])
    cells = Cells(*filled_cells(list(seen.counts), site, kinds))
    flat = chosen.layers * mask.shape[1] + chosen.neurons
    belongs = mask[chosen.layers, chosen.neurons]
    domain = _own_domain(cells, flat, belongs, len(selection.domains))
    known, names = selection.reachability, probability_columns(selection.domains)
    probability = selection.probability[site][chosen.layers, chosen.neurons]
    columns: dict[str, Any] = {
        "model": pl.repeat(selection.model, len(flat), dtype=pl.String, eager=True),
        "module": pl.repeat(module_of(site), len(flat), dtype=pl.String, eager=True),
        "site": pl.repeat(site, len(flat), dtype=pl.String, eager=True),
        "layer": chosen.layers.numpy(),
        "neuron": chosen.neurons.numpy(),
        "selected": member[chosen.layers, chosen.neurons].numpy(),
        "domains": pl.Series(_named(belongs, selection.domains), dtype=pl.List(pl.String)),
        "domain": pl.Series([selection.domains[one] for one in _list(domain)], dtype=pl.String),
        "entropy": selection.entropy[site][chosen.layers, chosen.neurons].numpy(),
        **{names[one]: probability[:, number].numpy() for number, one in enumerate(selection.domains)},
        **_ends(cells, flat, [names[one] for one in selection.domains], resamples, seed),
        **_by_kind(seen.counts, site, kinds, chosen, names),
        **_effects(cells, flat, domain, len(selection.domains), resamples, seed),
        "f": f_statistic(cells, len(selection.domains))[flat].numpy(),
        "reaches_logits": pl.Series([known.reaches(site, layer) for layer in _list(chosen.layers)], dtype=pl.Boolean),
        **_activity(seen.moments, site, chosen, domain),
        **_attributed(seen.attributions, site, chosen, domain),
    }
    return pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def _ends(cells: Cells, flat: Int64[Tensor, " neuron"], names: list[str], resamples: int, seed: int) -> dict[str, Any]:
    """The ends of the intervals of the probabilities."""
    parts = [torch.zeros(2, len(names), 0, dtype=torch.float64, device="cpu")]
    for some in _chunks(len(flat)):
        generator = torch.Generator().manual_seed(seed)
        parts.append(probability_ends(cells, flat[some], len(names), resamples, generator))
    ends = torch.cat(parts, dim=-1)
    return {
        _other_than(names, f"{name}_{end}"): ends[number, domain].numpy()
        for domain, name in enumerate(names)
        for number, end in enumerate(("low", "high"))
    }


def _other_than(taken: Collection[str], name: str) -> str:
    """The name, or one like it that is not taken: a domain may be called as a column of another one."""
    while name in taken:
        name += "_"
    return name


def _own_domain(
    cells: Cells, flat: Int64[Tensor, " neuron"], belongs: Bool[Tensor, "neuron domain"], domains: int
) -> Int64[Tensor, " neuron"]:
    """Of the domains that a neuron belongs to, or of all, the one with the largest log-odds; the first of several."""
    member = torch.nn.functional.one_hot(cells.labels, domains).double()
    active, tokens = cells.active[:, flat].T @ member, (cells.tokens @ member)[None].expand(len(flat), -1)
    rest = active.sum(1, keepdim=True) - active, tokens.sum(1, keepdim=True) - tokens
    odds = log_odds(active, tokens, *rest)
    open_to = belongs | ~belongs.any(1, keepdim=True)
    return odds.masked_fill(~open_to, -torch.inf).argmax(1)


def _by_kind(
    counts: tuple[Counts, ...], site: str, kinds: tuple[str, ...], chosen: Chosen, names: dict[str, str]
) -> dict[str, Any]:
    """Probabilities by domain and kind of token; null where a domain has no token of a kind."""
    found: dict[str, Any] = {}
    for one in counts:
        for kind in kinds:
            active, tokens = one.total(site, (kind,))
            values = active[chosen.layers, chosen.neurons].double() / tokens
            found[_other_than({*found, *names.values()}, f"{names[one.domain]}_{kind}")] = values.numpy()
    return found


def _effects(
    cells: Cells,
    flat: Int64[Tensor, " neuron"],
    domain: Int64[Tensor, " neuron"],
    domains: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    names = ("log_odds", "log_odds_low", "log_odds_high", "difference")
    parts = [torch.zeros(0, 4, dtype=torch.float64, device="cpu")]
    for some in _chunks(len(flat)):
        generator = torch.Generator().manual_seed(seed)
        drawn = redrawn_effects(cells, flat[some], domain[some], domains, resamples, generator)
        parts.append(measured_columns(drawn))
    measured = torch.cat(parts)
    return {name: measured[:, number].numpy() for number, name in enumerate(names)}


def f_statistic(cells: Cells, domains: int) -> Float64[Tensor, " neuron"]:
    """F over buckets of each domain, of every neuron; NaN where no bucket differs from its domain or too few are there.

    [sum_d n_d (p_d - p)^2 / (k - 1)] / [sum_db n_db (p_db - p_d)^2 / (B - k)], with k domains and B cells.
    """
    member = torch.nn.functional.one_hot(cells.labels, domains).double()
    tokens = cells.tokens @ member
    of_domain = probability_of_cells(*cells, (cells.active.shape[1], domains)).T
    whole = cells.active.sum(0) / cells.tokens.sum()
    between = (tokens[:, None] * (of_domain - whole) ** 2).sum(0) / (domains - 1)
    each = cells.active / cells.tokens[:, None]
    within = (cells.tokens[:, None] * (each - of_domain[cells.labels]) ** 2).sum(0)
    free = len(cells.tokens) - domains
    return (
        torch.where(within > 0, between / (within / free), torch.nan) if free > 0 else torch.full_like(whole, torch.nan)
    )


def _activity(
    moments: tuple[Moments, ...], site: str, chosen: Chosen, domain: Int64[Tensor, " neuron"]
) -> dict[str, Any]:
    """Mean and maximum of act and post in the neuron's domain; null without moments."""
    names = ("mean_act", "max_act", "mean_post", "max_post")
    if not moments:
        return {name: pl.repeat(None, len(domain), dtype=pl.Float64, eager=True) for name in names}
    found = activity(moments, site)
    return {name: found[name][chosen.layers, chosen.neurons, domain].double().numpy() for name in names}


def _attributed(
    attributions: tuple[Attributions, ...], site: str, chosen: Chosen, domain: Int64[Tensor, " neuron"]
) -> dict[str, Any]:
    empty = pl.repeat(None, len(domain), dtype=pl.Float64, eager=True)
    if not attributions or site not in attributions[0].attribution:
        return {"attribution": empty, "attribution_rank": empty}
    values = torch.stack([one.attribution[site].sum(0) / one.questions.sum() for one in attributions])
    own = values[domain, chosen.layers, chosen.neurons]
    ordered = values.abs().flatten(1).sort(1).values
    rank = torch.searchsorted(ordered[domain], own.abs()[:, None])[:, 0].double() / ordered.shape[1]
    return {"attribution": own.numpy(), "attribution_rank": rank.numpy()}


def _named(belongs: Bool[Tensor, "neuron domain"], domains: tuple[str, ...]) -> list[list[str]]:
    rows = cast("list[list[bool]]", belongs.tolist())
    return [[one for one, here in zip(domains, row, strict=True) if here] for row in rows]


def _list(values: Tensor) -> list[int]:
    return cast("list[int]", values.tolist())


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
