"""The page of the paper: all its tables and figures in its order, its claims, what was run and what was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts.fitting import refuse_types
from mmneuron_lens.artifacts.format import provenance, read_lines, unpacking, write_lines
from mmneuron_lens.evaluation.claims import claims
from mmneuron_lens.paper import paper_numbers
from mmneuron_lens.paper.ablation import cross_matrix, table_2, table_3
from mmneuron_lens.paper.comparison import compared
from mmneuron_lens.paper.control_section import controls
from mmneuron_lens.paper.corpora import figure_2, table_4
from mmneuron_lens.paper.findings import findings_of, verdicts
from mmneuron_lens.paper.further import flow, probes
from mmneuron_lens.paper.layers import Cases, figure_6, figure_7, figures_10_to_13, table_9
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.paper.neuron_section import neuron_examples
from mmneuron_lens.paper.neurons_page import pages_beside, publish_neurons
from mmneuron_lens.paper.provenance import facts_of
from mmneuron_lens.paper.selected import figure_5, figure_9, table_1, table_6, tables_of_13b
from mmneuron_lens.report.page import Page, write
from mmneuron_lens.report.tables import listed
from mmneuron_lens.runs.folder import RunError
from mmneuron_lens.runs.neuron_tables import write_neurons
from mmneuron_lens.runs.plan import Plan

PAPER = "paper.json"
"""What says of a folder that it holds a run of the paper: its models, corpus and plan."""

KIND = "run of the paper"

AGAIN = "mmneuron report RUN"


def is_paper(out: str | Path) -> bool:
    """Whether a folder holds a run of the paper."""
    return (Path(out) / PAPER).is_file()


def write_described(path: Path, described: dict[str, Any]) -> None:
    """Writes what a run of the paper was: corpus, drawn, plan, models, notes, shared."""
    write_lines(path, KIND, [], described)


def read_described(path: Path) -> dict[str, Any]:
    """What `write_described` wrote. Raises `ArtifactError` naming the file, and a field that cannot be."""
    _, described = read_lines(path, KIND)
    with unpacking(path, KIND):
        plan = described["plan"]
        texts = {name: tuple(plan[name]) for name in ("lens_questions", "lens_at")}
        refuse_types(Plan(**{**plan, **texts}))
        refuse_types(_Described(**{name: described[name] for name in _Described.__annotations__}))
    return described


@dataclass(frozen=True)
class _Described:
    """The types of the fields."""

    corpus: str
    drawn: bool
    models: list[str]
    notes: list[str]
    shared: int


def publish_paper(out: str | Path, cases: Cases | None = None) -> Path:
    """Writes `index.html`, `neurons.parquet`, `neurons.csv`, `tables/` (CSV and LaTeX) and `figures/` of a run; returns
    the page's path.

    - cases: what Figures 6 and 10 to 13 show; as the run's plan says unless given.

    Raises `RunError` for a folder without a run.
    """
    refuse_no_paper(out)
    write_neurons(out)
    publish_neurons(out)
    return write(paper_of(out, cases), out)


def refuse_no_paper(out: str | Path) -> None:
    """Raises `RunError` for a folder without a run of the paper."""
    if not is_paper(out):
        raise RunError(f"{out} holds no run of the paper; make one with `mmneuron paper --embedded --out {out}`.")


def paper_of(out: str | Path, cases: Cases | None = None) -> Page:
    """Everything the page shows, from a run's folder."""
    out = Path(out)
    refuse_no_paper(out)
    described = read_described(out / PAPER)
    runs = [ModelRun(out, model) for model in described["models"]]
    evidence = [run.evidence for run in runs]
    plan = described["plan"]
    names = listed(run.model for run in runs)
    cases = cases or Cases(tuple(plan["lens_at"]), plan["even_layers"])
    tested = claims(evidence, seed=plan["seed"])
    sections = (
        figure_2(runs), figure_5(runs), table_1(runs), table_2(runs), table_3(runs), figure_6(runs, cases),
        figure_7(runs), table_4(runs), figure_9(runs), figures_10_to_13(runs, cases), table_6(runs),
        *tables_of_13b(runs), table_9(runs), controls(runs), cross_matrix(runs),
        neuron_examples(runs), flow(runs), probes(runs),
        *([compared(runs)] if any(run.comparison for run in runs) else []),
    )  # fmt: skip
    return Page(
        title=f"MMNeuron on {names}",
        lead="Every table and figure of “MMNeuron: Discovering Neuron-Level Domain-Specific Interpretation in "
        "Multimodal Large Language Model” (arXiv 2406.11193), in its order, on the models and questions named here.",
        run=said_of_run(runs, described),
        sections=sections,
        claims=tested,
        findings=(*verdicts(tested), *findings_of(runs)),
        facts=facts_of(runs, AGAIN, plan),
        not_run=said_not_run(runs, described),
        versions=tuple(provenance()["versions"].items()),
        beside=pages_beside(out),
    )


def said_of_run(runs: Sequence[ModelRun], described: dict[str, Any]) -> tuple[str, ...]:
    """What was run, in paragraphs."""
    plan = described["plan"]
    generation = plan["generation"]
    asked = sum(counts.samples for counts in runs[0].counts)
    questions = len({(one.domain, one.id) for one in runs[0].answers})
    off = {"zero": "held at zero", "mean": "held at their mean", "scale": f"multiplied by {plan['factor']:g}"}
    corpus = "a corpus drawn by a program" if described["drawn"] else described["corpus"]
    shared = described.get("shared", 0)
    apart = f"{shared:,} questions that are answered are about images that identify neurons too: the splits share them."
    if not shared:
        apart = "No image is in both the questions that identify neurons and those that are answered."
    return (
        f"{asked:,} image-question pairs of {corpus} went through each model to count how often every neuron is "
        f"active, and the {100 * plan['fraction']:g} % of each module with the lowest entropy over domains were "
        f"selected. {apart}",
        f"{questions:,} other questions were answered with neurons {off[plan['off']]}, by beam search with "
        f"{generation.get('num_beams', 1)} beams, length penalty {generation.get('length_penalty', 1.0):g} and at most "
        f"{generation.get('max_new_tokens')} new tokens, at every position and step. The paper’s temperature of 0.9 "
        "acts only when sampling, which beam search does not do.",
        *described.get("notes", ()),
    )


def said_not_run(runs: Sequence[ModelRun], described: dict[str, Any]) -> tuple[str, ...]:
    """What was not run, a line each."""
    said = []
    strange = [run.model for run in runs if run.model not in paper_numbers.MODELS]
    if strange:
        said.append(
            f"{', '.join(strange)}: not a model of the paper, so its printed numbers are not shown beside ours."
        )
    if described["drawn"]:
        said.append(
            "The images are drawn by a program and the models are small ones trained on such drawings: nothing here "
            "says anything about the published checkpoints or corpora."
        )
    said += [note for run in runs if run.official is not None for note in run.official.notes]
    said.append("Figures 1, 3, 4 and 8 and Table 5 of the paper explain method and prompts and hold no results.")
    plan = described["plan"]
    said.append(
        f"Random neurons ({plan['ablation_draws']} draws) and the neurons of other domains were switched off in all "
        "modules at once, not in one module at a time, where questions were answered."
    )
    return tuple(said)
