"""Items about which neurons were found: Tables 1, 6, 7 and 8, Figures 5 and 9, and the controls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.files import file_name
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.paper import paper_numbers as printed
from mmneuron_lens.paper.model_run import ModelRun, sources_of, stacked
from mmneuron_lens.report import tables
from mmneuron_lens.report.figures import layer_figure, silent_figure
from mmneuron_lens.report.page import Grid, Picture
from mmneuron_lens.report.paper_page import Item
from mmneuron_lens.runs.stages import selection_file


def table_1(runs: Sequence[ModelRun]) -> Item:
    grids, _ = _neurons(runs, False, "neurons_per_domain")
    summary = stacked(tables.selection_summary(run.selection) for run in runs)
    grids.append(Grid("selection", "What the rule came to at each site", summary, folded=True))
    text = (
        "A neuron belongs to every domain in which it is active on more tokens than the threshold, so the numbers of a "
        "row may add up to more than were selected. A rule that always selects its share proves nothing by the number: "
        "see the controls below.",
    )
    return Item("Table 1", "Neurons of each domain", text, tuple(grids), sources=sources_of(runs, "selection"))


def table_6(runs: Sequence[ModelRun]) -> Item:
    grids, files = _neurons(runs, True, "neurons_per_domain_wider")
    if not grids:
        return Item("Table 6", "At a threshold of 5 %", missing="the selection was not repeated at 5 %.")
    sources = []
    for run, file in zip(runs, files, strict=False):
        sources.append(run.source(file, Selection.load(file).parameters))
    return Item("Table 6", "Neurons of each domain at 5 %", (), tuple(grids), sources=tuple(sources))


def _neurons(runs: Sequence[ModelRun], wider: bool, name: str) -> tuple[list[Grid], list[Path]]:
    long, frames, files, paper = [], [], [], []
    for run in runs:
        file = selection_file(run.out, run.model)
        file = run.out / "selection_wider" / file.name if wider else file
        if not file.is_file():
            continue
        selection = Selection.load(file)
        files.append(file)
        long.append(tables.neurons_per_domain(selection))
        frames.append(tables.wide(long[-1], "neurons", selection.domains))
        known = printed.neurons(run.model, selection.parameters["fraction"])
        if known is not None:
            own = known.with_columns(pl.lit(run.model).alias("model"))
            paper.append(tables.wide(own, "neurons", selection.domains))
    if not frames:
        return [], []
    fraction = f"{100 * selection.parameters['fraction']:g} %"
    caption = f"Number of neurons in each domain, lowest {fraction} of the entropy. The most in each module is bold."
    grids = [Grid(name, caption, stacked(frames), most=True, long=stacked(long))]
    if paper:
        grids.append(Grid(f"{name}_printed", "The same as the paper prints it.", stacked(paper), most=True))
    return grids, files


def figure_5(runs: Sequence[ModelRun]) -> Item:
    frames = [tables.layer_distribution(run.selection) for run in runs]
    pictures = tuple(
        Picture(
            f"figure_5_layers_{file_name(run.model)}",
            f"{run.model}: domain-specific neurons of each domain over layers, layer 0 nearest to the input. Each "
            "panel has a vertical scale of its own.",
            partial(layer_figure, frame),
        )
        for run, frame in zip(runs, frames, strict=True)
    )
    wide = stacked(
        tables.wide(frame, "neurons", run.selection.domains) for run, frame in zip(runs, frames, strict=True)
    )
    grid = Grid("layer_distribution", "The numbers behind the figure", wide, folded=True, long=stacked(frames))
    return Item(
        "Figure 5", "Domain-specific neurons by layer", (), (grid,), pictures, sources=sources_of(runs, "selection")
    )


def figure_9(runs: Sequence[ModelRun]) -> Item:
    title = "Silent neurons"
    counted = [run for run in runs if run.counts]
    if not counted:
        return Item("Figure 9", title, missing="no neurons were counted.")
    frames = [tables.silent(run.counts) for run in counted]
    pictures = tuple(
        Picture(
            f"figure_9_silent_{file_name(run.model)}",
            f"{run.model}: share of each vision layer’s neurons that were active on no token of any domain.",
            partial(silent_figure, frame.filter(pl.col("site") == "vision.mlp.act")),
        )
        for run, frame in zip(counted, frames, strict=True)
    )
    grid = Grid("silent", "The numbers, at every site", stacked(frames), folded=True)
    return Item("Figure 9", title, (), (grid,), pictures, sources=sources_of(counted, "counts"))


def tables_of_13b(runs: Sequence[ModelRun]) -> tuple[Item, ...]:
    """Tables 7 and 8 repeat 1 and 2 on the 13B model: when it was run, it stands in these."""
    wanted = "llava-hf/llava-v1.6-vicuna-13b-hf"
    if any(run.model == wanted for run in runs):
        note = "The 13B model’s numbers stand in Table {} above, with the paper’s beside them."
        return (
            Item("Table 7", "Neurons of each domain, 13B", (note.format(1),)),
            Item("Table 8", "Accuracy with neurons off, 13B", (note.format(2),)),
        )
    missing = f"{wanted} was not run."
    return (
        Item("Table 7", "Neurons of each domain, 13B", missing=missing),
        Item("Table 8", "Accuracy with neurons off, 13B", missing=missing),
    )


def controls(runs: Sequence[ModelRun]) -> Item:
    title = "Is the selection more than chance?"
    frames, sources = [], []
    for run in runs:
        folder = run.out / "controls" / file_name(run.model)
        files = [folder / "false_discovery.safetensors", folder / "halves_overlap.safetensors"]
        if all(file.is_file() for file in files):
            frames.append(tables.control(FalseDiscovery.load(files[0]), HalvesOverlap.load(files[1])))
            sources += [run.source(file, {}) for file in files]
    if not frames:
        return Item("Controls", title, missing="the corpus is too small for them.")
    text = (
        "False discovery rate (fdr): domain labels shuffled over images, the procedure repeated, and the neurons that "
        "chance puts under the same entropy divided by those selected: near 0, domains explain the selection; near 1, "
        "chance does. Overlap: the selection repeated on two halves of the data, shared neurons over those in either.",
    )
    grid = Grid("control", "Not in the paper. By module.", stacked(frames))
    return Item("Controls", title, text, (grid,), sources=tuple(sources))
