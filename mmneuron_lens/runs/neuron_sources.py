"""What a run's folder holds of each model's neurons, for their page and their cards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.report.neuron_sources import Neuron, NeuronSources, Written, domains_in, shapes_in
from mmneuron_lens.runs.folder import RunError, file_of

TABLE = "neurons.parquet"
FOLDER, PICTURES = "neurons", "pictures"
NEEDED = ("model", "module", "site", "layer", "neuron", "selected", "domains", "domain")


def neuron_sources(run: str | Path, model: str | None = None) -> list[NeuronSources]:
    """What the run holds of its models' neurons, in the order of the table; of one model alone if it is named.

    Raises `RunError` for a folder without a table of neurons, one that lacks a column, or another model, with the
    choices; errors of artifacts as their `load` does.
    """
    run = Path(run)
    frame = _table(run)
    models = frame["model"].unique(maintain_order=True).to_list()
    if model is not None and model not in models:
        raise RunError(f"no neurons of {model!r} in {run / TABLE}; choose a model from {', '.join(models)}.")
    pictures = _pictures(run)
    return [
        _of_model(run, one, frame.filter(pl.col("model") == one), pictures) for one in models if model in (None, one)
    ]


def _table(run: Path) -> pl.DataFrame:
    file = run / TABLE
    if not file.is_file():
        raise RunError(f"{run} holds no table of neurons ({TABLE}); write it with `mmneuron select {run}`.")
    try:
        frame = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidValue(f"{file}: is no table ({error}); write it again with `mmneuron select {run}`.") from error
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise InvalidValue(f"{file}: lacks {', '.join(missing)}; write it again with `mmneuron select {run}`.")
    return frame


def _of_model(run: Path, model: str, frame: pl.DataFrame, pictures: Mapping[str, str]) -> NeuronSources:
    # Columns of another model's domains.
    frame = frame.drop(one.name for one in frame if one.name.startswith("p_") and one.null_count() == len(one))
    selection, examples = file_of(run, "selection", model), file_of(run, "examples", model)
    domains, shapes, known = domains_in(frame), shapes_in(frame), Reachability(None)
    if selection.is_file():
        found = Selection.load(selection)
        domains, known = found.domains, found.reachability
        shapes |= {site: (int(mask.shape[0]), int(mask.shape[1])) for site, mask in found.masks.items()}
    return NeuronSources(
        model, frame, domains, shapes,
        examples=NeuronExamples.load(examples) if examples.is_file() else None,
        written=_written(run, model),
        reachability=known,
        pictures=pictures,
    )  # fmt: skip


def _written(run: Path, model: str) -> dict[Neuron, Written] | None:
    """What the model's neurons write; None where that was not run."""
    return None


def _pictures(run: Path) -> dict[str, str]:
    """The thumbnails by their digest, as a page in the folder of neurons calls them."""
    return {file.stem: f"{PICTURES}/{file.name}" for file in (run / FOLDER / PICTURES).glob("*.jpg")}
