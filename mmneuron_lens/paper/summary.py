"""The short page of `mmneuron demo` and `mmneuron select`: which neurons were found, and what happens without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.paper.ablation import table_2
from mmneuron_lens.paper.comparison import compared
from mmneuron_lens.paper.control_section import controls
from mmneuron_lens.paper.corpora import table_4
from mmneuron_lens.paper.findings import findings_of
from mmneuron_lens.paper.model_run import ModelRun, domains_of
from mmneuron_lens.paper.neuron_section import neuron_examples
from mmneuron_lens.paper.neurons_page import pages_beside, publish_neurons
from mmneuron_lens.paper.page import is_paper
from mmneuron_lens.paper.provenance import facts_of
from mmneuron_lens.paper.selected import figure_5, figure_9, table_1, table_6
from mmneuron_lens.report.page import INDEX, Page, figures_folder, tables_folder, write
from mmneuron_lens.report.tables import domain_name, listed
from mmneuron_lens.runs.folder import RunError, selected_models
from mmneuron_lens.runs.neuron_tables import write_neurons

SELECTION = "selection"
"""The name of the page in a folder whose first page is the paper's."""


def publish(
    out: str | Path,
    *,
    counts_in: str | Path | None = None,
    uncontrolled: Mapping[str, str] | None = None,
    not_run: Sequence[str] = (),
) -> Path:
    """Writes the page of the models that a run has a selection of, with its tables and figures; returns its path.

    The table of its neurons, `neurons.parquet` and `neurons.csv`, and their page, `neurons/index.html`, are written
    beside it.

    - out: the folder with the selections. `index.html` there, or `selection.html` beside the page of a paper.
    - counts_in: the folder with the counts, if another.
    - uncontrolled: by model, why there are no controls, where that is known.
    - not_run: what was not run, besides what the sections say.

    Raises `RunError` for a folder without a selection.
    """
    out, counts_in = Path(out), None if counts_in is None else Path(counts_in)
    models = selected_models(out)
    if not models:
        raise RunError(f"{out} holds no selection; write one with `mmneuron select {out}`.")
    runs = [ModelRun(out, model, counts_in, (uncontrolled or {}).get(model, "")) for model in models]
    name = SELECTION if is_paper(out) else INDEX
    page = out / f"{name}.html"
    # Of answers, or of a comparison, that belong to other neurons.
    tables, figures = tables_folder(page), figures_folder(page)
    of_answers = (*tables.glob("ablation*.*"), *figures.glob("table_2_*.png"))
    for stale in (*of_answers, *tables.glob("comparison*.*"), *figures.glob("comparison*.png")):
        # Another process may be making the page too.
        stale.unlink(missing_ok=True)
    write_neurons(out, counts_in=counts_in)
    publish_neurons(out)
    return write(summary_of(runs, not_run), out, name)


def summary_of(runs: Sequence[ModelRun], not_run: Sequence[str] = ()) -> Page:
    """Everything the page shows; a section without content is a line of what was not run."""
    names, domains = listed(run.model for run in runs), domains_of(runs)
    answered, judged = any(run.answers for run in runs), any(run.comparison for run in runs)
    sections = [
        neuron_examples(runs),
        *([compared(runs)] if judged else []),
        *([table_2(runs)] if answered or not judged else []),
        figure_5(runs),
        table_1(runs),
        table_6(runs),
        controls(runs),
        figure_9(runs),
        table_4(runs),
    ]
    missing = [one.missing[0].upper() + one.missing[1:] for one in sections if one.missing]
    asked = sum(counts.samples for counts in runs[0].counts)
    fraction = f"{100 * runs[0].selection.parameters['fraction']:g} %"
    return Page(
        title=f"Domain-specific neurons of {names}",
        lead=f"Neurons active mostly in few of {len(domains)} visual domains: {', '.join(map(domain_name, domains))}.",
        run=(
            f"{asked:,} image-question pairs went through each model, and every neuron’s activations above zero were "
            f"counted, domain by domain. In each module the {fraction} of neurons most specific to few domains were "
            "then selected.",
        ),
        # Its own titles: the names in the paper say nothing to whom it is not the paper.
        sections=tuple(replace(one, name="") for one in sections if not one.missing),
        not_run=(*missing, *not_run),
        versions=tuple(provenance()["versions"].items()),
        beside=pages_beside(runs[0].out),
        findings=findings_of(runs),
        facts=facts_of(runs, _again(runs[0].selection.parameters)),
    )


def _again(rule: Mapping[str, Any]) -> str:
    """The command that selects the same neurons again, and makes the page."""
    given = {name: rule[name] for name in ("method", "fraction", "percentile") if name in rule}
    return " ".join(("mmneuron select RUN", *(f"--{name} {value}" for name, value in given.items())))
