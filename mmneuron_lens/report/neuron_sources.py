"""What a card of a neuron is made from: the table's rows of one model, and what else was run of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import polars as pl

from interventions.sites import GROUP_KINDS
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.report.tables import domain_names

Neuron = tuple[str, int, int]
"""Site, layer and neuron."""

UNKNOWN = Reachability(None)
KINDS = tuple(dict.fromkeys(kind for kinds in GROUP_KINDS.values() for kind in kinds))


class Written(NamedTuple):
    """What a neuron of the language model adds to the logits by its output weights.

    - top, bottom: tokens with their scores, the largest and the smallest, the strongest first.
    - contribution: to the logit of the right answer's first token, the mean over its examples; None where that is not
      known.
    - missing: why words or contributions are not there; "" where they are.
    """

    top: Sequence[tuple[str, float]]
    bottom: Sequence[tuple[str, float]]
    contribution: float | None = None
    missing: str = ""


@dataclass(frozen=True, eq=False)
class NeuronSources:
    """Of one model; everything but the table may be absent.

    - model: its name. frame: its rows of the table of neurons (`neurons.table.neuron_table`), a row a neuron.
    - domains: in order. shapes: by site, layers and neurons of the model, whether the table has them all or not.
    - examples: the largest activations. written: what neurons write, by site, layer and neuron.
    - reachability: which layers can reach the logits, and why the others cannot.
    - pictures: the thumbnails that there are, by the first 16 hexadecimal digits of the picture's sha256.
    """

    model: str
    frame: pl.DataFrame
    domains: tuple[str, ...]
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    examples: NeuronExamples | None = None
    written: Mapping[Neuron, Written] | None = None
    reachability: Reachability = UNKNOWN
    pictures: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def neurons(self) -> list[Neuron]:
        """Of the rows, in their order."""
        return [*self.frame.select("site", "layer", "neuron").iter_rows()]

    @cached_property
    def place_of_example(self) -> dict[Neuron, int]:
        """Where each neuron that has examples stands along its site's first axis."""
        found = {} if self.examples is None else self.examples.neurons
        pairs = {site: own.tolist() for site, own in found.items()}
        return {(site, layer, one): place for site in pairs for place, (layer, one) in enumerate(pairs[site])}

    @cached_property
    def names(self) -> dict[str, str]:
        """How each domain is written."""
        return domain_names(self.domains)

    @cached_property
    def columns(self) -> dict[tuple[str, str], str]:
        """The table's columns of activation probabilities by domain and kind of token, "" for all tokens."""
        own = {(one, ""): f"p_{one}" for one in self.domains}
        found = {key: name for key, name in own.items() if name in self.frame.columns}
        for domain in self.domains:
            for kind in KINDS:
                name = f"p_{domain}_{kind}"
                while name in found.values():
                    name += "_"
                if name in self.frame.columns:
                    found[domain, kind] = name
        return found

    def row(self, place: int) -> dict[str, Any]:
        """A row of the table; columns that it lacks are null."""
        return {**dict.fromkeys(OPTIONAL), **self.frame.row(place, named=True)}

    def keeping(self, frame: pl.DataFrame) -> NeuronSources:
        """The same with these rows alone."""
        return NeuronSources(
            self.model, frame, self.domains, self.shapes, self.examples, self.written, self.reachability, self.pictures
        )


OPTIONAL = (
    *("entropy", "log_odds", "log_odds_low", "log_odds_high", "difference", "f", "reaches_logits"),
    *("mean_act", "max_act", "mean_post", "max_post", "attribution", "attribution_rank"),
    *("effect", "effect_low", "effect_high", "effect_rank"),
)
"""Columns that a table may lack."""


def domains_in(frame: pl.DataFrame) -> tuple[str, ...]:
    """The domains of a table, in the order of their columns, for a folder without a selection: those that it names, and
    every column of a probability that is not one of a domain by kind of token.
    """
    named = {*frame["domain"].drop_nulls()} | {*frame["domains"].explode().drop_nulls()}
    order = [name[2:] for name in frame.columns if name.startswith("p_")]
    by_kind = {f"{one}_{kind}" for one in order for kind in KINDS}
    return (*(one for one in order if one in named or one not in by_kind), *sorted(named - {*order}))


def shapes_in(frame: pl.DataFrame) -> dict[str, tuple[int, int]]:
    """Layers and neurons of each site, as far as the table's rows reach."""
    ends = frame.group_by("site", maintain_order=True).agg(pl.col("layer", "neuron").max() + 1)
    return {site: (layers, neurons) for site, layers, neurons in ends.iter_rows()}


def evidence_ranks(sources: NeuronSources) -> list[int]:
    """The place of each row when those that teach most come first: they reach the logits, have pictures mostly of their
    own domain, log-odds and then a measured effect whose whole interval is on one side of 0, and large log-odds.
    """
    rows = ({**dict.fromkeys(OPTIONAL), **row} for row in sources.frame.iter_rows(named=True))
    found = [_evidence(sources, row) for row in rows]
    order = sorted(range(len(found)), key=lambda place: found[place], reverse=True)
    ranks = [0] * len(found)
    for rank, place in enumerate(order):
        ranks[place] = rank
    return ranks


def _evidence(sources: NeuronSources, row: Mapping[str, Any]) -> tuple[float, ...]:
    pictured, own = _pictured(sources, (row["site"], row["layer"], row["neuron"]), row["domain"])
    low, odds = _or_none(row["log_odds_low"]), _or_none(row["log_odds"])
    ends = _or_none(row["effect_low"]), _or_none(row["effect_high"])
    measured = ends[0] is not None and ends[1] is not None and ends[0] * ends[1] > 0
    above = low is not None and low > 0
    return (row["reaches_logits"] is not False, pictured, own, above, measured, -math.inf if odds is None else odds)


def _pictured(sources: NeuronSources, neuron: Neuron, domain: str | None) -> tuple[bool, bool]:
    """Whether a neuron has examples with pictures, and whether at least half of them are of this domain."""
    place, found = sources.place_of_example.get(neuron), sources.examples
    if place is None or found is None:
        return False, False
    samples, pictures = (cast(Any, values[neuron[0]][place]).tolist() for values in (found.sample, found.picture))
    domains = [found.samples[one].domain for one, which in zip(samples, pictures, strict=True) if one >= 0 <= which]
    return bool(domains), bool(domains) and 2 * domains.count(domain or "") >= len(domains)


def _or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def most_specific(frame: pl.DataFrame, most: int, shown: Collection[Neuron] = ()) -> pl.DataFrame:
    """At most so many rows: selected neurons first, then those with examples, then the others; each by the magnitude of
    the log-odds, the largest first.

    - shown: the neurons that have examples.
    """
    odds = frame["log_odds"].abs().fill_nan(-1).fill_null(-1) if "log_odds" in frame.columns else [-1.0] * len(frame)
    seen = [one in shown for one in frame.select("site", "layer", "neuron").iter_rows()]
    order = pl.DataFrame({"selected": frame["selected"], "shown": seen, "odds": odds}).with_row_index()
    ordered = order.sort("selected", "shown", "odds", descending=True, nulls_last=True, maintain_order=True)
    return frame[ordered["index"].head(most)]
