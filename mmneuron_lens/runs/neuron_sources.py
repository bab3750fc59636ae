"""What a run's folder holds of each model's neurons, for their page and their cards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.neuron_words import WrittenWords
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.selection import Selection, module_of
from mmneuron_lens.report.neuron_sources import Neuron, NeuronSources, Written, domains_in, shapes_in
from mmneuron_lens.runs.folder import RunError, file_of, files_in

TABLE = "neurons.parquet"
FOLDER, PICTURES = "neurons", "pictures"
NEEDED: dict[str, pl.DataType] = {
    **dict.fromkeys(("model", "module", "site"), pl.String()),
    **dict.fromkeys(("layer", "neuron"), pl.Int64()),
    **{"selected": pl.Boolean(), "domains": pl.List(pl.String), "domain": pl.String()},
}


def neuron_sources(run: str | Path, model: str | None = None) -> list[NeuronSources]:
    """What the run holds of its models' neurons, in the order of the table; of one model alone if it is named.

    Neurons that have examples and are not in the table are there too, with nothing but these.

    Raises `RunError` for a folder without a table of neurons and without examples, `InvalidValue` for a table that
    lacks a column, and for another model, with the choices; errors of artifacts as their `load` does.
    """
    run = Path(run)
    examples = {one.model: one for one in map(NeuronExamples.load, files_in(run / "examples"))}
    frame = _table(run, bool(examples))
    models = [*dict.fromkeys([*frame["model"], *examples])]
    if model is not None and model not in models:
        raise RunError(f"no neurons of {model!r} in {run / TABLE}; choose a model from {', '.join(models)}.")
    pictures = _pictures(run)
    return [
        _of_model(run, one, frame.filter(pl.col("model") == one), examples.get(one), pictures)
        for one in models
        if model in (None, one)
    ]


def _table(run: Path, may_lack: bool) -> pl.DataFrame:
    file = run / TABLE
    if not file.is_file():
        if may_lack:
            return pl.DataFrame(schema=NEEDED)
        raise RunError(f"{run} holds no table of neurons ({TABLE}); write it with `mmneuron select {run}`.")
    try:
        frame = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidValue(f"{file}: is no table ({error}); write it again with `mmneuron select {run}`.") from error
    frame = _of_a_selection_alone(frame)
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise InvalidValue(f"{file}: lacks {', '.join(missing)}; write it again with `mmneuron select {run}`.")
    return frame


def _of_a_selection_alone(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with `selected` and `domain`, which a model without counts lacks: its neurons are the selected ones."""
    lacking = [pl.lit(None, NEEDED[name]).alias(name) for name in ("selected", "domain") if name not in frame.columns]
    if "domains" not in frame.columns:
        return frame
    own = pl.coalesce("domain", pl.col("domains").list.first())
    return frame.with_columns(lacking).with_columns(own.alias("domain"), pl.col("selected").fill_null(True))


def _of_model(
    run: Path, model: str, frame: pl.DataFrame, examples: NeuronExamples | None, pictures: Mapping[str, str]
) -> NeuronSources:
    frame = _with_others(frame, examples)
    # Columns of another model's domains.
    frame = frame.drop(one.name for one in frame if one.name.startswith("p_") and one.null_count() == len(one))
    selection, words = file_of(run, "selection", model), file_of(run, "words", model, suffix=".jsonl")
    domains, shapes, known = domains_in(frame), shapes_in(frame), Reachability(None)
    if selection.is_file():
        found = Selection.load(selection)
        domains, known = found.domains, found.reachability
        shapes = shapes | {site: (int(mask.shape[0]), int(mask.shape[1])) for site, mask in found.masks.items()}
    return NeuronSources(
        model, frame, domains, shapes,
        examples=examples,
        written=_written(words) if words.is_file() else None,
        reachability=known,
        pictures=pictures,
    )  # fmt: skip


def _with_others(frame: pl.DataFrame, examples: NeuronExamples | None) -> pl.DataFrame:
    """The rows, and one for each neuron that has examples and no row."""
    if examples is None:
        return frame
    there = {*frame.select("site", "layer", "neuron").iter_rows()}
    rows = [
        {"model": examples.model, "module": module_of(site), "site": site, "layer": layer, "neuron": neuron}
        for site, pairs in examples.neurons.items()
        for layer, neuron in pairs.tolist()
        if (site, layer, neuron) not in there
    ]
    others = pl.DataFrame([{**row, "selected": False, "domains": [], "domain": None} for row in rows], schema=NEEDED)
    return pl.concat([frame, others], how="diagonal_relaxed") if rows else frame


def _written(file: Path) -> dict[Neuron, Written]:
    """What the model's neurons write, and where it cannot be known, why."""
    words = WrittenWords.load(file)
    return {
        (one.site, one.layer, one.neuron): Written(one.top, one.bottom, one.contribution, words.missing)
        for one in words.neurons
    }


def _pictures(run: Path) -> dict[str, str]:
    """The thumbnails by their digest, as a page in the folder of neurons calls them."""
    return {file.stem: f"{PICTURES}/{file.name}" for file in (run / FOLDER / PICTURES).glob("*.jpg")}
