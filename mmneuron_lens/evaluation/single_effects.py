"""Single effects: the measured effect of each neuron with its interval, and how it stands among random neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import polars as pl

from mmneuron_lens.artifacts.neuron_effects import NeuronEffects
from mmneuron_lens.metrics.intervals import mean_interval

COLUMNS = ("effect", "effect_low", "effect_high", "effect_rank")


def with_effects(table: pl.DataFrame, effects: Sequence[NeuronEffects]) -> pl.DataFrame:
    """A table of neurons with what was measured of them in their `domain`; null where nothing was.

    - effects: of some or all domains of one model.

    effect: the mean change over questions of the right answer's log-probability with this neuron alone at zero, in
    nats, and the ends of its 95 % bootstrap interval over questions (null for fewer than two questions); effect_rank:
    the share of the random neurons of the same site whose effect is smaller, by magnitude (null where none was drawn).
    """
    on = ["model", "site", "layer", "neuron", "domain"]
    frames = [table.select(on).clear().with_columns(pl.lit(None, pl.Float64).alias(name) for name in COLUMNS)]
    measured = pl.concat([*frames, *(_measured(one, on) for one in effects)])
    return table.join(measured, on=on, how="left", maintain_order="left")


def _measured(one: NeuronEffects, on: Sequence[str]) -> pl.DataFrame:
    frame, change, drawn = one.to_frame(), one.change.numpy(), one.drawn.numpy()
    means, sites = change.mean(1), frame["site"].to_numpy()
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for place in range(len(means)):
        random = numpy.abs(means[drawn & (sites == sites[place])])
        low, high = mean_interval(change[place])
        rank = float((random < abs(means[place])).mean()) if len(random) else None
        for name, value in zip(COLUMNS, (float(means[place]), low, high, rank), strict=True):
            columns[name].append(value)
    found = frame.with_columns(pl.Series(name, values, dtype=pl.Float64) for name, values in columns.items())
    return found.filter(~pl.col("drawn")).select(*on, *COLUMNS)
