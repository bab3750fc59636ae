"""Sections about what neurons do: Tables 2 and 3 and the cross matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE
from mmneuron_lens.artifacts.deviations import BY_LAYER, MEASURES
from mmneuron_lens.artifacts.digits import interval
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.evaluation.accuracy import against_random, cross_scores, scores
from mmneuron_lens.evaluation.deviation import deviation_rows
from mmneuron_lens.paper import paper_numbers
from mmneuron_lens.paper.model_run import ModelRun, domains_of, known_of, notes_on, sources_of, stacked
from mmneuron_lens.report import tables
from mmneuron_lens.report.ablation_figures import ablation_figure, deviation_figure
from mmneuron_lens.report.sections import Grid, Picture, Section
from mmneuron_lens.report.tables import domain_name
from mmneuron_lens.report.unreachable import marked, of_neurons_off


def between(row: Mapping[str, Any]) -> str:
    """A difference with its interval: "−1.4 [−2.0, 0.3]"."""
    return interval(row["difference"], row["low"], row["high"])


SHOWN = pl.struct("difference", "low", "high").map_elements(between, return_dtype=pl.String).alias("shown")


def table_2(runs: Sequence[ModelRun]) -> Section:
    """Accuracy with a domain’s neurons off, against nothing off and against as many random neurons."""
    title = "Accuracy with domain-specific neurons off"
    asked = [run for run in runs if run.answers]
    if not asked:
        return Section(title, missing="no question was answered with neurons off.", name="Table 2")
    domains = domains_of(asked)
    frame = stacked(tables.ablation(scores(run.answers, run.scoring)) for run in asked)
    main = frame.filter(pl.col("condition").is_in([NONE, DOMAIN])).drop("condition")
    accuracy = tables.wide(main, "accuracy", domains)
    differences = (
        main.filter(pl.col("module") != "None").with_columns(SHOWN).select("model", "module", "domain", "shown")
    )
    rows = [row for run in asked for row in against_random(run.answers, run.scoring)]
    against = pl.DataFrame(rows, infer_schema_length=None)
    count = max(frame["questions"].to_list())
    scored = pl.DataFrame(
        {"model": run.model, "domain": domain_name(domain), "scored by": name}
        for run in asked
        for domain, name in run.metrics.items()
    )
    page = scored.drop("model").unique(maintain_order=True)
    shared = page["domain"].is_unique().all()
    text = (
        f"Each domain’s questions (at most {count}) were answered with that domain’s neurons off, in one module or in "
        "all. An interval that crosses zero is compatible with no effect.",
    )
    differences = tables.wide(differences, "shown", domains)
    notes, known, off = notes_on(asked, of_neurons_off), known_of(asked), {"module": tables.OFF_IN}
    grids = [
        Grid(
            "ablation_accuracy",
            "Accuracy in per cent.",
            marked(accuracy, known).rename(off),
            decimals=1,
            long=accuracy.rename(off),
            notes=notes,
        ),
        Grid(
            "ablation_difference",
            "Difference to no ablation in percentage points, with its 95 % interval paired by question.",
            marked(differences, known).rename(off),
            long=differences.rename(off),
            notes=notes,
        ),
        Grid("ablation_scores", "How the answers are scored.", page if shared else scored, long=scored),
        Grid(
            "ablation",
            "Every condition, with random draws",
            marked(frame, known),
            folded=True,
            long=frame,
            notes=notes,
        ),
    ]
    if len(against):
        shown = against.with_columns(SHOWN)
        caption = (
            "The domain’s neurons against as many random ones: difference of accuracy in percentage points, paired by "
            "question; below zero with its whole interval where the domain’s own neurons matter more than chance."
        )
        wide = marked(tables.wide(shown, "shown", domains), known)
        grids.insert(2, Grid("ablation_against_random", caption, wide, long=against, notes=notes))
    for run in asked:
        printed = paper_numbers.accuracy(run.model)
        if printed is not None:
            wide = tables.wide(printed, "accuracy", domains).rename({"module": tables.OFF_IN})
            name = f"ablation_printed_{file_name(run.model)}"
            grids.append(Grid(name, f"As the paper prints it, {paper_numbers.MODELS[run.model]}.", wide, decimals=1))
    pictures = tuple(
        Picture(
            f"table_2_ablation_{file_name(run.model)}",
            f"{run.model}: change of accuracy in percentage points with its interval. Filled: the domain’s neurons "
            "off. Hollow: random draws of as many neurons, in all modules at once. "
            f"{of_neurons_off(run.selection)}".strip(),
            partial(ablation_figure, tables.ablation(scores(run.answers, run.scoring))),
        )
        for run in asked
    )
    sources = sources_of(asked, "selection", "answers", "official scores")
    return Section(title, text, tuple(grids), pictures, sources=sources, name="Table 2")


def table_3(runs: Sequence[ModelRun]) -> Section:
    """How far the last hidden state moves with a domain’s neurons off, and with as many random ones."""
    title = "Deviation of the last hidden state with neurons off"
    asked = [run for run in runs if run.deviations]
    if not asked:
        return Section(title, missing="no hidden state was compared.", name="Table 3")
    domains = domains_of(asked)
    rows = {measure: [row for run in asked for row in deviation_rows(run.deviations, measure)] for measure in MEASURES}
    frame = pl.DataFrame(rows["after norm"], infer_schema_length=None)
    named = frame.with_columns(
        pl.when(pl.col("condition") == DOMAIN)
        .then(pl.col("module"))
        .otherwise(pl.concat_str(pl.lit("as many "), pl.col("condition"), pl.lit(", "), pl.col("module")))
        .alias("module")
    )
    sections = [named.filter(pl.col("condition") == DOMAIN)]
    sections.append(named.filter((pl.col("condition") != DOMAIN) & pl.col("module").str.ends_with(f", {ALL}")))
    shown = tables.wide(stacked(sections).drop("condition"), "deviation", domains)
    known = known_of(asked)
    shown = marked(stacked(shown.filter(pl.col("model") == run.model) for run in asked), known)
    shown = shown.rename({"module": tables.OFF_IN})
    caption = (
        "Deviation in per cent: the Frobenius norm of the change of the last hidden state, after the final norm, over "
        "that of the state itself, over all positions of the evaluation prompt; mean over questions. Random neurons "
        "match the number in each module, or in each layer."
    )
    everything = stacked(
        pl.DataFrame(some, infer_schema_length=None).with_columns(pl.lit(measure).alias("measure"))
        for measure, some in rows.items()
    )
    notes = notes_on(asked, of_neurons_off)
    measures = "Every condition and measure, with intervals over questions"
    grids = [
        Grid("deviation", caption, shown, decimals=2, long=frame, notes=notes),
        Grid("deviation_measures", measures, marked(everything, known), folded=True, long=everything, notes=notes),
    ]
    for run in asked:
        printed = paper_numbers.deviation(run.model)
        if printed is not None:
            wide = tables.wide(printed, "deviation", domains).rename({"module": tables.OFF_IN})
            name = f"deviation_printed_{file_name(run.model)}"
            grids.append(Grid(name, f"As the paper prints it, {paper_numbers.MODELS[run.model]}.", wide, decimals=2))
    pictures = tuple(
        Picture(
            f"table_3_deviation_{file_name(run.model)}",
            f"{run.model}: the numbers of the table as points, with the random draws of every module. "
            f"{of_neurons_off(run.selection)}".strip(),
            partial(deviation_figure, frame.filter(pl.col("model") == run.model)),
        )
        for run in asked
    )
    samples = max(frame["samples"].to_list())
    draws = len({name for one in asked[0].deviations for _, name in one.conditions if name.startswith(BY_LAYER)})
    text = (
        f"{samples} questions a domain, without generation; {draws} random draws of each kind. The paper’s “Random "
        "(Avg.)” is the row that matches modules. A projector whose neurons change nothing at all, as the paper prints "
        "it, would show as 0.",
    )
    sources = sources_of(asked, "selection", "deviations")
    return Section(title, text, tuple(grids), pictures, sources=sources, name="Table 3")


def cross_matrix(runs: Sequence[ModelRun]) -> Section:
    """Accuracy on each domain with the neurons of every other domain off."""
    title = "Neurons of one domain off, questions of another"
    rows = [row for run in runs for row in (cross_scores(run.answers, run.scoring) if run.answers else ())]
    pairs = {(row["neurons_of"], row["domain"]) for row in rows}
    if all(one == other for one, other in pairs):
        return Section(title, missing="only each domain’s own neurons were switched off.", name="Cross matrix")
    frame = pl.DataFrame(rows, infer_schema_length=None)
    whole = frame.filter(pl.col("module") == ALL)
    shown = whole.with_columns(
        SHOWN,
        pl.col("neurons_of").replace(tables.domain_names(domains_of(runs))),
    )
    table = tables.wide(shown.select("model", "neurons_of", "domain", "shown"), "shown", domains_of(runs))
    caption = (
        "Not in the paper. Rows: whose neurons are off, in all modules. Columns: whose questions are asked. Difference "
        "of accuracy to no ablation in percentage points, with its 95 % interval."
    )
    asked = [run for run in runs if run.answers]
    grid = Grid("cross", caption, table, long=frame, notes=notes_on(asked, of_neurons_off))
    return Section(title, (), (grid,), sources=sources_of(asked, "answers", "official scores"), name="Cross matrix")
