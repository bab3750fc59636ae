"""Sections about what is not in the paper: how the image's information flows, and what probes read off each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.digits import interval, number
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.experiments.domain_probes import probe_rows
from mmneuron_lens.experiments.flow import flow_rows
from mmneuron_lens.paper.model_run import ModelRun, sources_of
from mmneuron_lens.report.figures import says_something
from mmneuron_lens.report.flow_figure import PLACE_NAMES, flow_figure, probe_figure
from mmneuron_lens.report.sections import Grid, Picture, Section
from mmneuron_lens.report.tables import domain_name, listed

FLOW, PROBES = "Flow", "Probes"


def flow(runs: Sequence[ModelRun]) -> Section:
    """Knock-out curves: a picture a model, a panel a domain."""
    title = "Flow of the image’s information"
    read = [run for run in runs if run.flow]
    if not read:
        return Section(title, missing="no attention was cut.", name=FLOW)
    frames = {run.model: flow_rows(run.flow) for run in read}
    frame = pl.concat(list(frames.values()))
    how = (
        "Not in the paper; arXiv 2411.18620. Some positions are kept from attending to others in a window of layers, "
        "and the probability p of the answer’s first token is compared with what it is otherwise: 100 (p’ − p) / p. "
        "Image to question: the question may not attend to the image; image to last, question to last: the last "
        "position, where the answer begins, may not attend to them. Where a curve falls, the answer needs that route "
        "in those layers; where it does not, it is not needed there, or another layer makes up for it.",
        "Of the questions that the model answers right, by greedy decoding. Lines are means over questions, bands "
        "their 95 % bootstrap intervals. What the question takes from the image in the last layer cannot reach the "
        "last position any more, so that the first route ends at 0.",
    )
    text = [*_most(frame), *(told for run in read for told in _notes(run))]
    pictures = tuple(
        Picture(
            f"flow_{file_name(run.model)}",
            f"{run.model}: change of the answer’s probability with attention cut in {_window(run)} around each layer "
            "(counted from 0).",
            partial(flow_figure, frames[run.model]),
        )
        for run in read
        if says_something(frames[run.model], "change")
    )
    grids = (
        (
            Grid(
                "flow_largest",
                "Where each route is needed most: the largest fall of the answer’s probability, in per cent, with its "
                "95 % interval.",
                _largest(frame),
            ),
            Grid("flow", "The numbers behind the figure", frame, folded=True, decimals=2),
        )
        if len(frame)
        else ()
    )
    return Section(title, tuple(text), grids, pictures, sources=sources_of(read, "flow"), name=FLOW, how=how)


def _most(frame: pl.DataFrame) -> list[str]:
    """What is needed most, a sentence a model."""
    said = []
    for (model,), rows in frame.group_by("model", maintain_order=True):
        row = rows.sort("change", "layer").row(0, named=True)
        if row["change"] >= 0:
            said.append(f"{model}: no answer becomes less likely, whatever route is cut.")
            continue
        change = interval(row["change"], row["low"], row["high"])
        said.append(
            f"{model}: the answers fall the most with {row['route']} cut around layer {row['layer']} "
            f"({domain_name(row['domain'])}: {change} %)."
        )
    return said


def _window(run: ModelRun) -> str:
    width = run.flow[0].window
    return "the one layer" if width == 1 else f"a window of {width} layers"


def _notes(run: ModelRun) -> list[str]:
    """What must be known of one model."""
    notes: list[str] = []
    for why in dict.fromkeys(one.missing for one in run.flow if one.missing):
        where = listed(domain_name(one.domain) for one in run.flow if one.missing == why)
        notes.append(f"{run.model} has no curve of {where}: {why}")
    if any(site.startswith("qformer.text") for site in run.selection.masks):
        notes.append(
            f"The Q-Former of {run.model} reads the question before the language model does: its image positions hold "
            "what it took from the image for this very question, so that less has to flow by the first route."
        )
    return notes


def _largest(frame: pl.DataFrame) -> pl.DataFrame:
    """By model and domain, of each route the largest fall as text, with its interval and its layer."""
    order = frame.select("model", "domain", "questions").unique(maintain_order=True)
    for route in frame["route"].unique(maintain_order=True):
        lowest = frame.filter(pl.col("route") == route).sort("change", "layer").group_by("model", "domain").first()
        said = [_said(row) for row in lowest.iter_rows(named=True)]
        lowest = lowest.select("model", "domain").with_columns(pl.Series(route, said, pl.String))
        order = order.join(lowest, on=["model", "domain"], how="left", maintain_order="left")
    names = {name: domain_name(name) for name in order["domain"].unique()}
    return order.with_columns(pl.col("domain").replace(names))


def _said(row: Mapping[str, Any]) -> str:
    """ "layer 1: −74.0 [−99.4, −24.6]", or that nothing falls."""
    if row["change"] > -0.05:
        return "no fall"
    return f"layer {row['layer']}: {interval(row['change'], row['low'], row['high'])}"


def probes(runs: Sequence[ModelRun]) -> Section:
    """Linear probes: a panel a model."""
    title = "The domain, read off each layer by a linear probe"
    found = [one for run in runs if (one := run.probes) is not None]
    if not found:
        return Section(title, missing="no probes were fitted.", name=PROBES)
    frame = probe_rows(found)
    questions, shuffles = found[0].right.shape[-1], found[0].shuffled.shape[-1]
    folds = found[0].parameters["folds"]
    how = (
        "Not in the paper. Ridge regression tells the domain of a question from the residual stream after each layer, "
        "at the last position of the prompt, or from its mean over image positions; each question is classified by a "
        f"probe that has not seen it ({questions} questions, one an image, {folds} folds).",
        f"A probe that is as good on labels that were shuffled ({shuffles} times, dotted) says nothing: the difference "
        "is its selectivity (arXiv 1909.03368). A good one says that the domain can be read off there, by its images "
        "or by the words of its questions, not that the model uses it; domains that differ in what they look like are "
        "told apart at once. At the embedding the last position holds the same token in every prompt, so that nothing "
        "can be read off it.",
    )
    caption = "Share of questions whose domain is read off rightly, with 95 % intervals over questions."
    picture = Picture("probes", caption, partial(probe_figure, frame))
    told = frame.with_columns(pl.col("place").replace(PLACE_NAMES))
    grid = Grid("probes", "The numbers behind the figure", told, folded=True, decimals=1, long=frame)
    return Section(title, _best(frame), (grid,), (picture,), sources=sources_of(runs, "probes"), name=PROBES, how=how)


def _best(frame: pl.DataFrame) -> tuple[str, ...]:
    """Where the domain is read off best, a sentence a model."""
    said = []
    for (model,), rows in frame.group_by("model", maintain_order=True):
        row = rows.sort("accuracy", "layer", descending=[True, False]).row(0, named=True)
        right = interval(row["accuracy"], row["low"], row["high"])
        said.append(
            f"{model}: read off best after layer {row['layer']}, {PLACE_NAMES.get(row['place'], row['place'])}: of "
            f"{right} % of questions; with shuffled labels of {number(row['shuffled'])} %."
        )
    return tuple(said)
