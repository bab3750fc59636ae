"""The tables of neurons of a run: one of all its models, as parquet and as CSV."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from interventions.files import write_atomically
from mmneuron_lens.artifacts.neuron_effects import NeuronEffects
from mmneuron_lens.artifacts.selection import Selection, probability_columns
from mmneuron_lens.evaluation.single_effects import with_effects
from mmneuron_lens.neurons.table import Of, neuron_table
from mmneuron_lens.report.csv_files import csv
from mmneuron_lens.runs.folder import file_of, selected_models
from mmneuron_lens.runs.observed import all_observed_in

NAME = "neurons"
"""Of the files, without their endings."""


def write_neurons(run: str | Path, *, counts_in: str | Path | None = None, of: Of = "selected") -> list[Path]:
    """Writes `neurons.parquet` and `neurons.csv` of every model that a run has a selection of; returns their paths.

    - counts_in: the folder with the counts, moments and attributions, if another.
    - of: "selected", or "all" of each model's neurons.

    The columns are those of `neurons.table.neuron_table` and `evaluation.single_effects.with_effects`; of a model
    without counts there, those of its selection alone. Raises as `neuron_table` does.
    """
    run, source = Path(run), Path(counts_in or run)
    frames: list[pl.DataFrame] = []
    for model in selected_models(run):
        selection = Selection.load(file_of(run, "selection", model))
        seen = all_observed_in(source, model, selection.domains)
        table = neuron_table(seen, selection, of) if seen.counts else _uncounted(selection)
        files = [file_of(source, "neuron_effects", model, domain) for domain in selection.domains]
        effects = [NeuronEffects.load(file) for file in files if file.is_file()]
        frames.append(with_effects(table, effects) if seen.counts else table)
    if not frames:
        return []
    frame = pl.concat(frames, how="diagonal_relaxed")
    parquet = io.BytesIO()
    frame.write_parquet(parquet)
    files = [run / f"{NAME}.parquet", run / f"{NAME}.csv"]
    write_atomically(files[0], parquet.getvalue())
    write_atomically(files[1], csv(frame))
    return files


def _uncounted(selection: Selection) -> pl.DataFrame:
    """What a selection alone says; `domain` is that of the highest probability among those a neuron belongs to."""
    frame = selection.to_frame()
    names = probability_columns(selection.domains)
    inside = [
        pl.when(pl.col("domains").list.contains(domain)).then(pl.col(name)).otherwise(-1.0)
        for domain, name in names.items()
    ]
    highest = pl.concat_list(inside).list.arg_max()
    return frame.with_columns(
        pl.lit(True).alias("selected"),
        pl.lit(pl.Series([list(selection.domains)])).first().list.get(highest).alias("domain"),
    )
