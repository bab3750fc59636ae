"""The section about what a selection proves: chance, agreement of halves, and how large the differences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import polars as pl

from mmneuron_lens.artifacts.digits import interval, number
from mmneuron_lens.artifacts.effect_sizes import EffectSizes
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.paper.model_run import ModelRun, known_of, notes_on, sources_of, stacked
from mmneuron_lens.report import tables
from mmneuron_lens.report.sections import Grid, Section
from mmneuron_lens.report.unreachable import marked, of_selection


def controls(runs: Sequence[ModelRun]) -> Section:
    """False discovery rate, overlap of halves and effect sizes, by module, and what each can tell."""
    title = "Is the selection more than chance?"
    # Files of controls may be older than a selection that could have none.
    controlled = [run for run in runs if not run.uncontrolled]
    found = [
        (run, discovery, overlap)
        for run in controlled
        if (discovery := run.discovery) is not None and (overlap := run.overlap) is not None
    ]
    if not found:
        reasons = dict.fromkeys(run.uncontrolled for run in runs if run.uncontrolled)
        return Section(
            title, missing="; ".join(reasons) or "the corpus is too small for the controls.", name="Controls"
        )
    _, discovery, overlap = found[0]
    draws, splits = len(next(iter(discovery.null.values()))), len(next(iter(overlap.shared.values())))
    fraction = runs[0].selection.parameters["fraction"]
    text = (
        f"False discovery rate (fdr): domain labels shuffled over images {draws} times, the procedure repeated, and "
        "the neurons that chance puts under the same entropy divided by those selected: near 0, domains explain the "
        "selection; near 1, chance does. It cannot tell how much: with enough tokens nearly every neuron differs "
        "between domains by more than chance, and the rate is 0 however small the differences are.",
        f"Overlap: the data split into two halves {splits} times, neurons selected in each, and the shared ones "
        "divided by those in either (Jaccard). 1 is full agreement; two random selections of this size would reach "
        f"{number(fraction / (2 - fraction))}. It tells whether other images give these neurons, not whether they "
        "matter.",
        "Effect size: the log-odds of a neuron’s being active on a token of its domain against those of all other "
        "domains; 0 is no difference, 0.69 twice the odds, 2.30 ten times. It tells how much the neurons differ. Those "
        "selected are the extremes of their own data, so it is also measured held out: selected in one half, measured "
        "in the other, where chance comes to 0.",
        "None of the three tells what the neurons do: see accuracy and deviation with them off, against as many random "
        "ones.",
    )
    known, notes = known_of(runs), notes_on(runs, of_selection)
    frame = stacked(tables.control(discovery, overlap, run.selection) for run, discovery, overlap in found)
    grids = [
        Grid("control", "Not in the paper. By module.", marked(frame, known), long=frame, notes=notes),
    ]
    measured = [run.effects for run in controlled if run.effects is not None]
    if measured:
        grids.append(_effects(measured, known_of(runs), notes))
    sources = sources_of(runs, "false discovery", "halves overlap", "effect sizes")
    return Section(title, text, tuple(grids), sources=sources, name="Controls")


def _effects(measured: Sequence[EffectSizes], known: Mapping[str, Reachability], notes: tuple[str, ...]) -> Grid:
    frame = stacked(map(tables.effect, measured))
    resamples = measured[0].provenance["resamples"]
    odds = math.exp(measured[0].minimum)
    caption = (
        "Not in the paper. Effect sizes of the selected neurons, each in every domain it belongs to: medians, with "
        f"95 % intervals from {resamples} resamples of the buckets of images. Difference: of the shares of tokens on "
        f"which it is active, in percentage points. Share: whose own interval lies above {odds:g} times the odds."
    )
    shown = frame.select(
        "model",
        "module",
        "memberships",
        "reachable",
        _interval("log_odds").alias("log-odds"),
        _interval("held_out").alias("log-odds, held out"),
        _interval("difference", 100).alias("difference"),
        pl.col("above").alias(f"share above {odds:g}×"),
    )
    return Grid("effect", caption, marked(shown, known), decimals=2, long=frame, notes=notes)


def _interval(column: str, factor: float = 1) -> pl.Expr:
    """A number with its interval as text: "1.42 [1.30, 1.55]"."""

    def text(row: dict[str, float | None]) -> str:
        return interval(*row.values(), factor=factor)

    names = (column, f"{column}_low", f"{column}_high")
    return pl.struct(names).map_elements(text, return_dtype=pl.String)
