"""Tables: artifacts to polars frames with fixed columns, and how a number, a heading and a file of them are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import polars as pl

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.digits import number
from mmneuron_lens.artifacts.effect_sizes import EffectSizes
from mmneuron_lens.artifacts.selection import Selection, groups_of, in_order, module_of
from mmneuron_lens.neurons.silent import silent_neurons

DOMAIN_NAMES = {
    "common": "Common Scenes",
    "remote_sensing": "Remote Sensing",
    "medical": "Medical",
    "document": "Document",
    "auto_driving": "Auto Driving",
}
"""The paper's names of the domains (Table 4); a domain it does not have keeps its own name."""

ABLATION: dict[str, pl.DataType] = {
    "model": pl.String(),
    "module": pl.String(),
    "condition": pl.String(),
    "domain": pl.String(),
    "accuracy": pl.Float64(),
    "difference": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "questions": pl.Int64(),
}
"""Columns of the ablation table. Condition: "none", "domain", or "random 1", "random 2", ...; module: "None", one of
the paper's, or "All". Accuracy in per cent; difference to "none" and its interval [low, high] in percentage points."""


def domain_name(domain: str) -> str:
    """How a domain is written in tables and figures."""
    return DOMAIN_NAMES.get(domain, domain)


def listed(names: Iterable[str]) -> str:
    """Names, one or more, as a sentence lists them: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def domain_names(domains: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """How each of these domains is written where no two may look alike; "(domain)" follows a name that is taken."""
    names: dict[str, str] = {}
    for domain in domains:
        name = domain_name(domain)
        while name in {*taken, *names.values()}:
            name += " (domain)"
        names[domain] = name
    return names


def neurons_per_domain(selection: Selection, by: Literal["module", "site"] = "module") -> pl.DataFrame:
    """Table 1 (at 5 %: Table 6): model, module, domain, neurons, reachable. With `by="site"`, also a column `site`.

    A neuron that belongs to several domains is counted in each. reachable: how many of them can reach the logits, null
    where that is not known.
    """
    groups = dict.fromkeys(map(module_of, selection.masks) if by == "module" else selection.masks)
    rows = []
    for group in groups:
        for domain in selection.domains:
            count = sum(int(mask.sum()) for mask in selection.neurons(domain, group).values())
            place = {"module": group} if by == "module" else {"module": module_of(group), "site": group}
            row = {"model": selection.model, **place, "domain": domain, "neurons": count}
            rows.append({**row, "reachable": selection.reachable(group, domain)})
    return pl.DataFrame(rows, schema_overrides={"reachable": pl.Int64})


def selection_summary(selection: Selection) -> pl.DataFrame:
    """What the rule came to at each site: model, module, site, neurons, requested, selected, reachable (of the selected
    neurons; null where that is not known), shortfall, threshold.
    """
    rows = [
        {
            "model": selection.model,
            "module": module_of(site),
            "site": site,
            "neurons": selection.entropy[site].numel(),
            "requested": selection.requested[site],
            "selected": selection.selected(site),
            "reachable": selection.reachable(site),
            "shortfall": selection.shortfall(site),
            "threshold": selection.threshold[site],
        }
        for site in selection.masks
    ]
    return pl.DataFrame(rows, schema_overrides={"reachable": pl.Int64})


def layer_distribution(selection: Selection) -> pl.DataFrame:
    """Figure 5: model, module, site, layer (from 0), reaches_logits (null where that is not known), domain, neurons."""
    rows = [
        {
            "model": selection.model,
            "module": module_of(site),
            "site": site,
            "layer": layer,
            "reaches_logits": selection.reachability.reaches(site, layer),
            "domain": domain,
            "neurons": int(selection.masks[site][layer, :, number].sum()),
        }
        for site in selection.masks
        for layer in range(len(selection.masks[site]))
        for number, domain in enumerate(selection.domains)
    ]
    return pl.DataFrame(rows, schema_overrides={"reaches_logits": pl.Boolean})


def silent(counts: list[Counts]) -> pl.DataFrame:
    """Figure 9, at every site: model, site, layer (from 0), reaches_logits (null where that is not known), silent,
    neurons (all of the layer).
    """
    rows, known = [], counts[0].reachability
    for site in in_order(counts[0].active):
        mask = silent_neurons(counts, site)
        for layer, count in enumerate(mask.sum(1).tolist()):
            place = {"model": counts[0].model, "site": site, "layer": layer}
            reaches = {"reaches_logits": known.reaches(site, layer)}
            rows.append({**place, **reaches, "silent": count, "neurons": mask.shape[1]})
    return pl.DataFrame(rows, schema_overrides={"reaches_logits": pl.Boolean})


def control(discovery: FalseDiscovery, overlap: HalvesOverlap, selection: Selection | None = None) -> pl.DataFrame:
    """The controls: model, module, fdr, null_mean, selected, reachable, overlap_mean, overlap_min, overlap_max.

    - selection: the one they are of; reachable, how many of the selected neurons can reach the logits, is null without.

    A row per module of the paper, one more per site where a module has several, and "All". NaN where nothing was
    selected.
    """
    rows = []
    for name in groups_of(discovery.selected):
        chosen = None if name == "All" else name
        values = overlap.jaccard(chosen)
        undefined = any(map(math.isnan, values))
        rows.append(
            {
                "model": discovery.model,
                "module": name,
                "fdr": discovery.rate(chosen),
                "null_mean": discovery.null_mean(chosen),
                "selected": discovery.count(chosen),
                "reachable": None if selection is None else selection.reachable(chosen),
                "overlap_mean": overlap.mean(chosen),
                "overlap_min": math.nan if undefined else min(values),
                "overlap_max": math.nan if undefined else max(values),
            }
        )
    return pl.DataFrame(rows, schema_overrides={"reachable": pl.Int64})


def effect(effects: EffectSizes) -> pl.DataFrame:
    """The effect sizes: model, module, memberships, reachable; log_odds, held_out and difference, each also with _low
    and _high; above: the share of memberships whose whole interval is above the minimum.

    A row per module of the paper, one more per site where a module has several, and "All". Medians; null where there
    is nothing to measure, or too little for an interval.
    """
    rows: list[dict[str, Any]] = []
    for name, one in effects.effects.items():
        row = {"model": effects.model, "module": name, "memberships": one["memberships"]}
        rows.append({**row, "reachable": effects.reachable(name)})
        for column in ("log_odds", "held_out", "difference"):
            value = one[column]
            rows[-1] |= {column: value["value"], f"{column}_low": value["low"], f"{column}_high": value["high"]}
        rows[-1]["above"] = one["above"]
    numbers = (name for name in rows[0] if name not in ("model", "module", "memberships", "reachable"))
    return pl.DataFrame(rows, schema_overrides={"reachable": pl.Int64} | dict.fromkeys(numbers, pl.Float64))


def ablation(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """The ablation table from the experiment's rows, with exactly the columns of `ABLATION`, in the order given.

    Raises `ValueError` naming the columns that are missing or not known.
    """
    rows = [dict(row) for row in rows]
    for place, row in enumerate(rows):
        if row.keys() != ABLATION.keys():
            missing, unknown = sorted(ABLATION.keys() - row.keys()), sorted(row.keys() - ABLATION.keys())
            raise InvalidValue(
                f"ablation row {place} lacks {missing} and has unknown {unknown}; give {list(ABLATION)}."
            )
    return pl.DataFrame(rows, schema=ABLATION)


ROWS = ("model", "module", "site", "kind", "neurons_of", "layer", "reaches_logits", "condition")
"""Columns that say what a row of a wide table is about."""


OFF_IN = "neurons off in"
"""What a column of modules is called where neurons were switched off."""


def wide(frame: pl.DataFrame, value: str, domains: Iterable[str]) -> pl.DataFrame:
    """The frame with a column per domain it has, in this order, holding `value`, as the paper prints its tables."""
    index = [name for name in frame.columns if name in ROWS]
    columns = pl.format("domain {}", pl.col("domain"))
    table = frame.with_columns(columns).pivot("domain", index=index, values=value, maintain_order=True)
    there = set(frame["domain"])
    names = domain_names((domain for domain in domains if domain in there), (*index, OFF_IN))
    return table.select(*index, *(pl.col(f"domain {domain}").alias(name) for domain, name in names.items()))


DECIMALS = {"accuracy": 1, "difference": 1, "low": 1, "high": 1, "null_mean": 1}
"""Decimals at which a column is shown; other fractions have three. Files keep full precision."""


def shown(value: Any, column: str = "", decimals: int | None = None) -> str:
    """A cell as people read it: 12,345; 0.012; −1.4; yes; a dash for nothing; see `artifacts.digits`.

    Decimals follow the column unless given.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return number(value, decimals=DECIMALS.get(column, 3) if decimals is None else decimals)


_WORDS = (
    *("null_mean", "overlap_mean", "overlap_min", "overlap_max", "neurons_of", "reaches_logits", "unreachable_layers"),
    *(f"{name}{end}" for name in ("log_odds", "held_out", "difference") for end in ("", "_low", "_high")),
    *("first_share", "second_share"),
)
"""Columns whose names are words; an underscore in the name of a domain is its own."""


def heading(column: str) -> str:
    """The name of a column as people read it."""
    return column.replace("_", " ") if column in _WORDS else column
