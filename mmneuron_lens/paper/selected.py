"""Sections about which neurons were found: Tables 1, 6, 7 and 8, Figures 5 and 9, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.neurons.selection import PUBLISHED
from mmneuron_lens.paper import paper_numbers
from mmneuron_lens.paper.model_run import ModelRun, known_of, notes_on, sources_of, stacked
from mmneuron_lens.report import tables
from mmneuron_lens.report.flat import Values
from mmneuron_lens.report.layer_figures import layer_figure, silent_figure
from mmneuron_lens.report.sections import Grid, Picture, Section
from mmneuron_lens.report.unreachable import marked, notes_of, of_counts, of_selection

VISIBLE = 1.0
"""Per cent of a layer's neurons that a bar must have more than another to be told from it."""

LARGEST_PAPER_MODEL = "llava-hf/llava-v1.6-vicuna-13b-hf"


def table_1(runs: Sequence[ModelRun]) -> Section:
    """Neurons of each module by domain, at the run’s own fraction."""
    grids = _neurons([run.selection for run in runs], "neurons_per_domain")
    summary = stacked(tables.selection_summary(run.selection) for run in runs)
    notes = notes_on(runs, of_selection)
    summary = marked(summary, known_of(runs))
    grids.append(Grid("selection", "What the rule came to at each site", summary, folded=True, notes=notes))
    rule = runs[0].selection.parameters
    if rule.get("method", PUBLISHED) != PUBLISHED:
        return Section("Neurons of each domain", _by(rule), tuple(grids), sources=sources_of(runs, "selection"))
    text = (
        "A neuron’s activation probability in a domain is the share of tokens on which its activation is above zero. "
        "Domain-specific neurons are those whose probabilities differ most between domains: the "
        f"{100 * rule['fraction']:g} % with the lowest entropy, among neurons with at least one domain above the "
        f"threshold, which is the {100 * rule['percentile']:g}th percentile of all probabilities of the site.",
        "A neuron belongs to every domain in which it is active on more tokens than the threshold, so the numbers of a "
        "row may add up to more than were selected. A rule that always selects its share proves nothing by the number: "
        "see the controls below.",
    )
    sources = sources_of(runs, "selection")
    return Section("Neurons of each domain", (), tuple(grids), sources=sources, name="Table 1", how=text)


def _by(rule: Mapping[str, Any]) -> tuple[str, ...]:
    """How neurons were ranked where it is not the paper's way."""
    return (
        f"Selected by {rule['method']}, which is not the method of the paper: as many of each domain’s highest scores "
        f"as name {100 * rule['fraction']:.3g} % of a module’s neurons together. docs/selectors.md has its formula.",
        "A neuron belongs to every domain among whose highest scores it is, so the numbers of a row may add up to more "
        "than were selected.",
    )


def table_6(runs: Sequence[ModelRun]) -> Section:
    """The same at a larger fraction."""
    found = [run.wider for run in runs if run.wider is not None]
    if not found:
        missing = "the selection was not repeated at a larger fraction."
        return Section("Neurons of each domain at a larger fraction", missing=missing, name="Table 6")
    title = f"Neurons of each domain at {_fraction(found[0])}"
    grids = _neurons(found, "neurons_per_domain_wider")
    return Section(title, (), tuple(grids), sources=sources_of(runs, "wider"), name="Table 6")


def _neurons(selections: Sequence[Selection], name: str) -> list[Grid]:
    """Neurons by module and domain; the branches of a module are rows of their own below it."""
    frames, long, paper = [], [], []
    for selection in selections:
        long.append(tables.neurons_per_domain(selection))
        by_site = tables.neurons_per_domain(selection, by="site")
        rows = []
        for module in long[-1]["module"].unique(maintain_order=True):
            rows.append(long[-1].filter(pl.col("module") == module))
            branches = by_site.filter(pl.col("module") == module)
            if branches["site"].n_unique() > 1:
                rows.append(branches.drop("module").rename({"site": "module"}))
        wide = tables.wide(stacked(rows), "neurons", selection.domains)
        frames.append(marked(wide, {selection.model: selection.reachability}))
        known = paper_numbers.neurons(selection.model, selection.parameters["fraction"])
        if known is not None:
            own = known.with_columns(pl.lit(selection.model).alias("model"))
            paper.append(tables.wide(own, "neurons", selection.domains))
    fraction = _fraction(selections[0])
    caption = f"Number of neurons in each domain, lowest {fraction} of the entropy. The most in each module is bold."
    notes = notes_of({one.model: of_selection(one) for one in selections})
    grids = [Grid(name, caption, stacked(frames), most=True, long=stacked(long), notes=notes)]
    if paper:
        grids.append(Grid(f"{name}_printed", "The same as the paper prints it.", stacked(paper), most=True))
    return grids


def _fraction(selection: Selection) -> str:
    return f"{100 * selection.parameters['fraction']:g} %"


def figure_5(runs: Sequence[ModelRun]) -> Section:
    """Neurons of each domain over the layers of each module, a picture a model."""
    frames = [tables.layer_distribution(run.selection) for run in runs]
    pictures = tuple(
        Picture(
            f"figure_5_layers_{file_name(run.model)}",
            f"{run.model}: domain-specific neurons of each domain over layers, layer 0 nearest to the input. Each "
            f"panel has a vertical scale of its own. {of_selection(run.selection)}".strip(),
            partial(layer_figure, frame),
            Values.of(f"the number of neurons of {run.model} by domain and layer", "", frame, "neurons"),
        )
        for run, frame in zip(runs, frames, strict=True)
    )
    wide = stacked(
        tables.wide(frame, "neurons", run.selection.domains) for run, frame in zip(runs, frames, strict=True)
    )
    notes = notes_on(runs, of_selection)
    shown = marked(wide, known_of(runs))
    caption = "The numbers behind the figure"
    grid = Grid("layer_distribution", caption, shown, folded=True, long=stacked(frames), notes=notes)
    title, sources = "Domain-specific neurons by layer", sources_of(runs, "selection")
    return Section(title, (), (grid,), pictures, sources=sources, name="Figure 5")


def figure_9(runs: Sequence[ModelRun]) -> Section:
    """Neurons that were active on no token of any domain; drawn for the vision encoder, listed for every site."""
    counted = [run for run in runs if run.counts]
    if not counted:
        return Section("Silent neurons", missing="no neurons were counted.", name="Figure 9")
    frames = [tables.silent(run.counts) for run in counted]
    said = "; ".join(
        f"{run.model}: {frame['silent'].sum():,} of {frame['neurons'].sum():,}"
        for run, frame in zip(counted, frames, strict=True)
    )
    pictures = tuple(
        Picture(
            f"figure_9_silent_{file_name(run.model)}",
            f"{run.model}: share of each vision layer’s neurons that were active on no token of any domain. "
            f"{of_counts(run.counts[0].reachability, ('vision.mlp.act',))}".strip(),
            partial(silent_figure, own),
            Values.of(
                f"the share of silent neurons in the vision layers of {run.model}",
                "%",
                (100 * own["silent"] / own["neurons"]).to_list(),
                visible=VISIBLE,
            ),
        )
        for run, own in zip(
            counted, (frame.filter(pl.col("site") == "vision.mlp.act") for frame in frames), strict=True
        )
        if len(own)
    )
    known = {run.model: run.counts[0].reachability for run in counted}
    notes, everything = notes_of({model: of_counts(one) for model, one in known.items()}), stacked(frames)
    caption = "The numbers, at every site"
    grid = Grid("silent", caption, marked(everything, known), folded=True, long=everything, notes=notes)
    text = (f"Neurons of all modules that were active on no token at all: {said}.",)
    sources = sources_of(counted, "counts")
    return Section("Silent neurons", text, (grid,), pictures, sources=sources, name="Figure 9")


def tables_of_13b(runs: Sequence[ModelRun]) -> tuple[Section, ...]:
    """Tables 7 and 8 repeat 1 and 2 on the 13B model: when it was run, it stands in these."""
    ran = any(run.model == LARGEST_PAPER_MODEL for run in runs)
    titles = {7: "Neurons of each domain, 13B", 8: "Accuracy with neurons off, 13B"}
    return tuple(
        Section(
            title,
            (f"The 13B model’s numbers stand in Table {number - 6} above, with the paper’s beside them.",)
            if ran
            else (),
            missing="" if ran else f"{LARGEST_PAPER_MODEL} was not run.",
            name=f"Table {number}",
        )
        for number, title in titles.items()
    )
