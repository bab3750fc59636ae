"""The paper's sheet: a run's artifacts as the named tables and figures of the paper, its claims, and one page.

Needs no model: `mmneuron report` makes the page again from the folder alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any

import polars as pl
import torch
from markupsafe import Markup

from mmneuron_lens.artifacts import content_hash, provenance
from mmneuron_lens.experiments.answers import ALL, DOMAIN, NONE, Answer, exact_match, load_answers
from mmneuron_lens.experiments.asking import Progress, file_name, quietly
from mmneuron_lens.experiments.claims import Evidence, claims
from mmneuron_lens.experiments.deviate import BY_LAYER, MEASURES, Deviations, deviation_rows
from mmneuron_lens.experiments.embed import Embeddings, component_rows
from mmneuron_lens.experiments.marking import Marks, marks_file
from mmneuron_lens.experiments.read import Entropies, LensTrace, entropy_rows
from mmneuron_lens.experiments.scoring import Marking, against_random, cross_scores, scores
from mmneuron_lens.experiments.stages import RunError, answers_file, selection_file
from mmneuron_lens.neurons.control import FalseDiscovery, HalvesOverlap
from mmneuron_lens.neurons.counts import Counts
from mmneuron_lens.neurons.selection import Selection
from mmneuron_lens.report import heat, printed, tables
from mmneuron_lens.report.deviation_figure import deviation_figure
from mmneuron_lens.report.embedding_figure import embedding_figure
from mmneuron_lens.report.entropy_figure import entropy_figure
from mmneuron_lens.report.figures import ablation_figure, layer_figure, silent_figure
from mmneuron_lens.report.hover import hover
from mmneuron_lens.report.page import Grid, Picture
from mmneuron_lens.report.paper_page import Item, Paper, Source, write
from mmneuron_lens.report.tables import domain_name

SHORT = {"common": "com", "remote_sensing": "rs", "medical": "med", "document": "doc", "auto_driving": "ad"}


@dataclass(frozen=True)
class ModelRun:
    """One model's artifacts in a run, read when asked for; a stage that was not run has none."""

    out: Path
    model: str

    def files(self, kind: str) -> list[Path]:
        found = sorted((self.out / kind / file_name(self.model)).glob("*.safetensors"))
        # In the selection's order of domains.
        order = [file_name(domain) for domain in self.selection.domains]
        return sorted(found, key=lambda file: order.index(file.stem) if file.stem in order else len(order))

    @cached_property
    def selection(self) -> Selection:
        return Selection.load(selection_file(self.out, self.model))

    @cached_property
    def counts(self) -> list[Counts]:
        return [Counts.load(file) for file in self.files("counts")]

    @cached_property
    def deviations(self) -> list[Deviations]:
        return [one for one in map(Deviations.load, self.files("deviations")) if self._fits(one.parameters)]

    @cached_property
    def entropies(self) -> list[Entropies]:
        return [Entropies.load(file) for file in self.files("entropies")]

    @cached_property
    def answers(self) -> list[Answer]:
        path = answers_file(self.out, self.model)
        digest = content_hash(selection_file(self.out, self.model))
        return [one for one in load_answers(path) if one.selection == digest] if path.is_file() else []

    @cached_property
    def marks(self) -> Marks | None:
        file = marks_file(self.out, self.model)
        return Marks.load(file) if file.is_file() else None

    @property
    def marking(self) -> Marking:
        return exact_match if self.marks is None else self.marks.values

    @property
    def evidence(self) -> Evidence:
        return Evidence(
            self.selection, self.counts, self.entropies, self.answers, self.marking, deviations=self.deviations
        )

    def traces(self, number: int) -> list[LensTrace]:
        return [LensTrace.load(file) for file in self.files(f"traces/{number}")]

    def _fits(self, parameters: dict[str, Any]) -> bool:
        return parameters.get("selection") == content_hash(selection_file(self.out, self.model))

    def source(self, file: Path, parameters: dict[str, Any]) -> Source:
        flat = tuple((key, json.dumps(value, ensure_ascii=False)) for key, value in parameters.items())
        return Source(str(file.relative_to(self.out)), content_hash(file), flat)

    def sources(self, kind: str) -> tuple[Source, ...]:
        """The artifacts of a kind, each with its parameters."""
        loaded = {"counts": self.counts, "deviations": self.deviations, "entropies": self.entropies}.get(kind, [])
        facts = [{**getattr(one, "parameters", {}), **_plain(one.provenance)} for one in loaded]
        files = self.files(kind)
        return tuple(self.source(file, fact) for file, fact in zip(files, facts, strict=False))


def publish_paper(out: str | Path, progress: Progress = quietly) -> Path:
    """Writes `index.html`, `tables/` (CSV and LaTeX) and `figures/` of a run; returns the page's path.

    Raises `RunError` for a folder without a run.
    """
    return write(paper_of(out), out)


def paper_of(out: str | Path) -> Paper:
    """Everything the page shows, from a run's folder."""
    out = Path(out)
    if not (out / "paper.json").is_file():
        raise RunError(f"{out} holds no run of the paper; make one with `mmneuron paper --embedded --out {out}`.")
    described = json.loads((out / "paper.json").read_text(encoding="utf-8"))
    runs = [ModelRun(out, model) for model in described["models"]]
    evidence = [run.evidence for run in runs]
    plan = described["plan"]
    names = " and ".join(run.model for run in runs)
    items = (
        _figure_2(runs), _figure_5(runs), _table_1(runs), _table_2(runs), _table_3(runs), _figure_6(runs),
        _figure_7(runs), _table_4(runs, described), _figure_9(runs), _more_cases(runs), _table_6(runs),
        *_thirteen(runs), _table_9(runs), _controls(runs), _cross(runs),
    )  # fmt: skip
    return Paper(
        title=f"MMNeuron on {names}",
        lead="Every table and figure of “MMNeuron: Discovering Neuron-Level Domain-Specific Interpretation in "
        "Multimodal Large Language Model” (arXiv 2406.11193), in its order, on the models and questions named here.",
        run=_run(runs, described),
        items=items,
        claims=claims(evidence, seed=plan["seed"]),
        not_run=_not_run(runs, described, items),
        versions=tuple(provenance()["versions"].items()),
    )


def _run(runs: Sequence[ModelRun], described: dict[str, Any]) -> tuple[str, ...]:
    plan = described["plan"]
    generation = plan["generation"]
    asked = sum(counts.samples for counts in runs[0].counts)
    questions = len({(one.domain, one.id) for one in runs[0].answers})
    off = {"zero": "held at zero", "mean": "held at their mean", "scale": f"multiplied by {plan['factor']:g}"}
    corpus = "a corpus drawn by a program" if described["drawn"] else described["corpus"]
    return (
        f"{asked:,} image-question pairs of {corpus} went through each model to count how often every neuron is "
        f"active, and the {100 * plan['fraction']:g} % of each module with the lowest entropy over domains were "
        "selected. No image is in both the questions that identify neurons and those that are answered.",
        f"{questions:,} other questions were answered with neurons {off[plan['off']]}, by beam search with "
        f"{generation.get('num_beams', 1)} beams, length penalty {generation.get('length_penalty', 1.0):g} and at most "
        f"{generation.get('max_new_tokens')} new tokens, at every position and step. The paper’s temperature of 0.9 "
        "acts only when sampling, which beam search does not do.",
    )


def _not_run(runs: Sequence[ModelRun], described: dict[str, Any], items: Sequence[Item]) -> tuple[str, ...]:
    said = []
    strange = [run.model for run in runs if run.model not in printed.MODELS]
    if strange:
        said.append(
            f"{', '.join(strange)}: not a model of the paper, so its printed numbers are not shown beside ours."
        )
    if described["drawn"]:
        said.append(
            "The images are drawn by a program and the models are small ones trained on such drawings: nothing here "
            "says anything about the published checkpoints or corpora."
        )
    said += [note for run in runs if run.marks is not None for note in run.marks.notes]
    said += [f"{item.name}: {item.missing}" for item in items if item.missing]
    said.append("Figures 1, 3, 4 and 8 and Table 5 of the paper explain method and prompts and hold no results.")
    plan = described["plan"]
    said.append(
        f"Random neurons ({plan['ablation_draws']} draws) and the neurons of other domains were switched off in all "
        "modules at once, not in one module at a time, where questions were answered."
    )
    return tuple(said)


def _stack(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(list(frames), how="diagonal_relaxed")


def _sources(runs: Sequence[ModelRun], *kinds: str) -> tuple[Source, ...]:
    found: list[Source] = []
    for run in runs:
        for kind in kinds:
            if kind == "selection":
                selection = run.selection
                facts = {**selection.parameters, **_plain(selection.provenance)}
                found.append(run.source(selection_file(run.out, run.model), facts))
            elif kind == "answers" and run.answers:
                file = answers_file(run.out, run.model)
                kept = file.with_suffix(".json")
                found.append(run.source(file, json.loads(kept.read_text()) if kept.is_file() else {}))
                if run.marks is not None:
                    found.append(run.source(marks_file(run.out, run.model), {"metrics": run.marks.metrics}))
            else:
                found += run.sources(kind)
    return tuple(found)


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "domains"}


def _domains(runs: Sequence[ModelRun]) -> list[str]:
    return list(dict.fromkeys(domain for run in runs for domain in run.selection.domains))


def _figure_2(runs: Sequence[ModelRun]) -> Item:
    title = "Image embeddings on two principal components"
    files = [(run, run.out / "embeddings" / f"{file_name(run.model)}.safetensors") for run in runs]
    loaded = [(run, file, Embeddings.load(file)) for run, file in files if file.is_file()]
    if not loaded:
        return Item("Figure 2", title, missing="no image was embedded.")
    frame = pl.DataFrame([row for _, _, one in loaded for row in component_rows(one)])
    sizes = ", ".join(f"{len(one.domain_of)} images of {one.model}" for _, _, one in loaded)
    caption = (
        f"The vision encoder’s pooled output, centred and not scaled, on its first two principal components; {sizes}. "
        "Of an image in tiles, the overview tile. Each model has axes of its own."
    )
    picture = Picture("figure_2_embeddings", caption, lambda theme: embedding_figure(frame, theme))
    grid = Grid("figure_2_embeddings", "The points of the figure", frame, folded=True)
    sources = tuple(run.source(file, {**one.parameters, **_plain(one.provenance)}) for run, file, one in loaded)
    return Item("Figure 2", title, (), (grid,), (picture,), sources=sources)


def _figure_5(runs: Sequence[ModelRun]) -> Item:
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
    wide = _stack(tables.wide(frame, "neurons", run.selection.domains) for run, frame in zip(runs, frames, strict=True))
    grid = Grid("layer_distribution", "The numbers behind the figure", wide, folded=True, long=_stack(frames))
    return Item(
        "Figure 5", "Domain-specific neurons by layer", (), (grid,), pictures, sources=_sources(runs, "selection")
    )


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
    grids = [Grid(name, caption, _stack(frames), most=True, long=_stack(long))]
    if paper:
        grids.append(Grid(f"{name}_printed", "The same as the paper prints it.", _stack(paper), most=True))
    return grids, files


def _table_1(runs: Sequence[ModelRun]) -> Item:
    grids, _ = _neurons(runs, False, "neurons_per_domain")
    summary = _stack(tables.selection_summary(run.selection) for run in runs)
    grids.append(Grid("selection", "What the rule came to at each site", summary, folded=True))
    text = (
        "A neuron belongs to every domain in which it is active on more tokens than the threshold, so the numbers of a "
        "row may add up to more than were selected. A rule that always selects its share proves nothing by the number: "
        "see the controls below.",
    )
    return Item("Table 1", "Neurons of each domain", text, tuple(grids), sources=_sources(runs, "selection"))


def _table_6(runs: Sequence[ModelRun]) -> Item:
    grids, files = _neurons(runs, True, "neurons_per_domain_wider")
    if not grids:
        return Item("Table 6", "At a threshold of 5 %", missing="the selection was not repeated at 5 %.")
    sources = []
    for run, file in zip(runs, files, strict=False):
        sources.append(run.source(file, Selection.load(file).parameters))
    return Item("Table 6", "Neurons of each domain at 5 %", (), tuple(grids), sources=tuple(sources))


def _table_2(runs: Sequence[ModelRun]) -> Item:
    title = "Accuracy with domain-specific neurons off"
    asked = [run for run in runs if run.answers]
    if not asked:
        return Item("Table 2", title, missing="no question was answered with neurons off.")
    domains = _domains(asked)
    frame = _stack(tables.ablation(scores(run.answers, run.marking)) for run in asked)
    main = frame.filter(pl.col("condition").is_in([NONE, DOMAIN])).drop("condition")
    accuracy = tables.wide(main, "accuracy", domains).rename({"module": "neurons off in"})
    differences = (
        main.filter(pl.col("module") != "None")
        .with_columns(
            pl.struct("difference", "low", "high").map_elements(_between, return_dtype=pl.String).alias("shown")
        )
        .select("model", "module", "domain", "shown")
    )
    rows = [row for run in asked for row in against_random(run.answers, run.marking)]
    against = pl.DataFrame(rows, infer_schema_length=None)
    count = max(frame["questions"].to_list())
    metrics = asked[0].marks.metrics if asked[0].marks else {}
    how = "; ".join(f"{domain_name(domain)}: {name}" for domain, name in metrics.items())
    text = (
        f"Scores: {how or 'top-1 accuracy, equal to an accepted answer but for case and space'}.",
        f"Each domain’s questions (at most {count}) were answered with that domain’s neurons off, in one module or in "
        "all. An interval that crosses zero is compatible with no effect.",
    )
    grids = [
        Grid("ablation_accuracy", "Accuracy in per cent.", accuracy, decimals=1),
        Grid(
            "ablation_difference",
            "Difference to no ablation in percentage points, with its 95 % interval paired by question.",
            tables.wide(differences, "shown", domains).rename({"module": "neurons off in"}),
        ),
        Grid("ablation", "Every condition, with random draws", frame, folded=True),
    ]
    if len(against):
        shown = against.with_columns(
            pl.struct("difference", "low", "high").map_elements(_between, return_dtype=pl.String).alias("shown")
        )
        caption = (
            "The domain’s neurons against as many random ones: difference of accuracy in percentage points, paired by "
            "question; below zero with its whole interval where the domain’s own neurons matter more than chance."
        )
        grids.insert(2, Grid("ablation_against_random", caption, tables.wide(shown, "shown", domains), long=against))
    for run in asked:
        known = printed.accuracy(run.model)
        if known is not None:
            wide = tables.wide(known, "accuracy", domains).rename({"module": "neurons off in"})
            name = f"ablation_printed_{file_name(run.model)}"
            grids.append(Grid(name, f"As the paper prints it, {printed.MODELS[run.model]}.", wide, decimals=1))
    pictures = tuple(
        Picture(
            f"table_2_ablation_{file_name(run.model)}",
            f"{run.model}: change of accuracy in percentage points with its interval. Filled: the domain’s neurons "
            "off. Hollow: random draws of as many neurons, in all modules at once.",
            partial(ablation_figure, tables.ablation(scores(run.answers, run.marking))),
        )
        for run in asked
    )
    return Item("Table 2", title, text, tuple(grids), pictures, sources=_sources(asked, "selection", "answers"))


def _between(row: dict[str, Any]) -> str:
    number = {name: tables.shown(row[name], decimals=1) for name in ("difference", "low", "high")}
    return f"{number['difference']} [{number['low']}, {number['high']}]"


def _table_3(runs: Sequence[ModelRun]) -> Item:
    title = "Deviation of the last hidden state with neurons off"
    asked = [run for run in runs if run.deviations]
    if not asked:
        return Item("Table 3", title, missing="no hidden state was compared.")
    domains = _domains(asked)
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
    shown = tables.wide(_stack(sections).drop("condition"), "deviation", domains)
    shown = _stack(shown.filter(pl.col("model") == run.model) for run in asked).rename({"module": "neurons off in"})
    caption = (
        "Deviation in per cent: the Frobenius norm of the change of the last hidden state, after the final norm, over "
        "that of the state itself, over all positions of the evaluation prompt; mean over questions. Random neurons "
        "match the number in each module, or in each layer."
    )
    everything = _stack(
        pl.DataFrame(some, infer_schema_length=None).with_columns(pl.lit(measure).alias("measure"))
        for measure, some in rows.items()
    )
    grids = [
        Grid("deviation", caption, shown, decimals=2, long=frame),
        Grid(
            "deviation_measures", "Every condition and measure, with intervals over questions", everything, folded=True
        ),
    ]
    for run in asked:
        known = printed.deviation(run.model)
        if known is not None:
            wide = tables.wide(known, "deviation", domains).rename({"module": "neurons off in"})
            name = f"deviation_printed_{file_name(run.model)}"
            grids.append(Grid(name, f"As the paper prints it, {printed.MODELS[run.model]}.", wide, decimals=2))
    pictures = tuple(
        Picture(
            f"table_3_deviation_{file_name(run.model)}",
            f"{run.model}: the numbers of the table as points, with the random draws of every module.",
            partial(deviation_figure, frame.filter(pl.col("model") == run.model)),
        )
        for run in asked
    )
    samples = max(frame["samples"].to_list())
    draws = len({name for one in asked[0].deviations for _, name in one.conditions if name.startswith(BY_LAYER)})
    text = (
        f"{samples} questions a domain, without generation; {draws} random draws of each kind. The paper’s “Random "
        "(Avg.)” is the row that matches modules. A projector whose neurons change nothing at all, as the paper prints "
        "it, would show as 0.00.",
    )
    return Item("Table 3", title, text, tuple(grids), pictures, sources=_sources(asked, "selection", "deviations"))


def _case(trace: LensTrace) -> Markup:
    """One question: what its second image token and its last text token decode to at every layer."""
    image = trace.position("image", 1 if trace.kinds.count("image") > 1 else 0)
    last = trace.last("text")
    parts = (
        heat.table(trace.heat(image), f"{trace.labels[image]}: next token expected {trace.best(image)!r}"),
        heat.table(trace.heat(last), f"last text token: right answer {' / '.join(trace.expected)!r}"),
    )
    question = f"<b>{escape(domain_name(trace.domain))}</b> {escape(trace.question)} Answer: "
    question += f"{escape(' / '.join(trace.expected))}; the model’s most likely next token: {escape(trace.best(last))}."
    pair = "".join(
        f'<div class="scroll" tabindex="0" role="region" aria-label="heatmap">{part}</div>' for part in parts
    )
    return Markup(f'<div class="case"><p>{question}</p><div class="pair">{pair}</div></div>')


def _figure_6(runs: Sequence[ModelRun]) -> Item:
    title = "What the layers say: the logit lens"
    read = [(run, trace) for run in runs for trace in run.traces(1)]
    if not read:
        return Item("Figure 6", title, missing="no question was read layer by layer.")
    text = (
        "The hidden state after each layer, put through the final norm and the unembedding: the five most likely next "
        "tokens, from white (0) to blue (1). The last layer is the model’s output, whose first token is the expected "
        "one; the right answer is named apart.",
        "Below each case, point at a patch of the image or a word of the prompt to read what it decodes to at each "
        "layer; a click holds it.",
    )
    after: list[Markup] = []
    for run in runs:
        mine = [trace for owner, trace in read if owner is run]
        chosen = next((trace for trace in mine if trace.domain == "remote_sensing"), mine[0] if mine else None)
        if chosen is not None:
            after.append(Markup("<h3>{}</h3>").format(run.model))
            after.append(_case(chosen))
            after.append(hover(chosen.document(), chosen.pictures, f"lens of {run.model}"))
    return Item("Figure 6", title, text, after=tuple(after), sources=_trace_sources(runs, "remote_sensing"))


def _more_cases(runs: Sequence[ModelRun]) -> Item:
    title = "More cases of the logit lens, other domains"
    read = [(run, trace) for run in runs for trace in run.traces(1) if trace.domain != "remote_sensing"]
    if not read:
        return Item("Figures 10–13", title, missing="no question of another domain was read.")
    after: list[Markup] = []
    for run in runs:
        inner = Markup("").join(
            _case(trace) + hover(trace.document(), trace.pictures, f"lens of {run.model}, {trace.domain}")
            for owner, trace in read
            if owner is run
        )
        after.append(Markup("<details><summary>{}</summary>{}</details>").format(run.model, inner))
    sources = tuple(
        source for domain in _domains(runs) if domain != "remote_sensing" for source in _trace_sources(runs, domain)
    )
    return Item("Figures 10–13", title, after=tuple(after), sources=sources)


def _trace_sources(runs: Sequence[ModelRun], domain: str) -> tuple[Source, ...]:
    found = []
    for run in runs:
        for file in run.files("traces/1"):
            trace = LensTrace.load(file)
            if trace.domain == domain:
                facts = {"id": trace.id, "question": trace.question, **trace.parameters, **_plain(trace.provenance)}
                found.append(run.source(file, facts))
    return tuple(found)


def _figure_7(runs: Sequence[ModelRun]) -> Item:
    title = "Average entropy of the next-token distribution"
    read = [run for run in runs if run.entropies]
    if not read:
        return Item("Figure 7", title, missing="no entropy was read.")
    frame = pl.DataFrame([row for run in read for row in entropy_rows(run.entropies)])
    caption = (
        "Entropy in nats of the distribution that the logit lens decodes, mean over the tokens of a kind (weighted by "
        "tokens), on the identification prompts. Solid: text tokens. Dashed: image tokens. Layer 0 is the embedding."
    )
    picture = Picture("figure_7_entropy", caption, lambda theme: entropy_figure(frame, theme))
    wide = frame.drop("tokens").pivot("domain", index=["model", "kind", "layer"], values="entropy", maintain_order=True)
    wide = wide.rename({domain: domain_name(domain) for domain in _domains(read)})
    grid = Grid("entropy", "The numbers behind the figure", wide, folded=True, decimals=3, long=frame)
    return Item("Figure 7", title, (), (grid,), (picture,), sources=_sources(read, "entropies"))


def _table_9(runs: Sequence[ModelRun]) -> Item:
    title = "Average entropy in selected layers"
    read = [run for run in runs if run.entropies]
    if not read:
        return Item("Table 9", title, missing="no entropy was read.")
    rows, extra = [], []
    for run in read:
        total = torch.stack([one.entropy.sum(0) for one in run.entropies]).sum(0)
        total = total / torch.stack([one.tokens.sum(0) for one in run.entropies]).sum(0)
        last = len(total) - 1
        # The paper's layers 0, 11, 28 and 40 of 40.
        layers = sorted({round(last * share / 40) for share in (0, 11, 28, 40)})
        for number, kind in enumerate(run.entropies[0].kinds):
            values = {f"layer {layer}": float(total[layer, number]) for layer in layers}
            rows.append({"model": run.model, "tokens": f"{kind} tokens", **values})
        known = printed.entropy(run.model)
        if known is not None:
            extra.append(known.with_columns(pl.lit(run.model).alias("model")))
    caption = "Average entropy of the vocabulary probability in nats, over all domains (weighted by tokens)."
    grids = [Grid("entropy_selected", caption, pl.DataFrame(rows, infer_schema_length=None), decimals=4)]
    if extra:
        grids.append(Grid("entropy_printed", "As the paper prints it.", _stack(extra), decimals=4))
    return Item("Table 9", title, (), tuple(grids), sources=_sources(read, "entropies"))


def _table_4(runs: Sequence[ModelRun], described: dict[str, Any]) -> Item:
    rows = []
    for counts in runs[0].counts:
        own = {run.model: some for run in runs for some in run.counts if some.domain == counts.domain}
        tokens = {f"LLM tokens, {model}": int(some.tokens["llm.mlp.act"].sum()) for model, some in own.items()}
        corpus = counts.provenance.get("corpus")
        name = corpus.get("name") if isinstance(corpus, dict) else corpus
        evaluated = len({one.id for one in runs[0].answers if one.domain == counts.domain})
        row = {"domain": domain_name(counts.domain), "corpus": name, "identifying questions": counts.samples}
        rows.append({**row, "answered questions": evaluated, **tokens})
    frame = pl.DataFrame(rows, infer_schema_length=None)
    caption = "Questions asked in each domain, and the tokens they come to in each model."
    return Item(
        "Table 4", "Domains and corpora", (), (Grid("corpora", caption, frame),), sources=_sources(runs, "counts")
    )


def _figure_9(runs: Sequence[ModelRun]) -> Item:
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
    grid = Grid("silent", "The numbers, at every site", _stack(frames), folded=True)
    return Item("Figure 9", title, (), (grid,), pictures, sources=_sources(counted, "counts"))


def _thirteen(runs: Sequence[ModelRun]) -> tuple[Item, ...]:
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


def _controls(runs: Sequence[ModelRun]) -> Item:
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
    grid = Grid("control", "Not in the paper. By module.", _stack(frames))
    return Item("Controls", title, text, (grid,), sources=tuple(sources))


def _cross(runs: Sequence[ModelRun]) -> Item:
    title = "Neurons of one domain off, questions of another"
    rows = [row for run in runs for row in (cross_scores(run.answers, run.marking) if run.answers else ())]
    pairs = {(row["neurons_of"], row["domain"]) for row in rows}
    if all(one == other for one, other in pairs):
        return Item("Cross matrix", title, missing="only each domain’s own neurons were switched off.")
    frame = pl.DataFrame(rows, infer_schema_length=None)
    whole = frame.filter(pl.col("module") == ALL)
    shown = whole.with_columns(
        pl.struct("difference", "low", "high").map_elements(_between, return_dtype=pl.String).alias("shown"),
        pl.col("neurons_of").replace({domain: domain_name(domain) for domain in _domains(runs)}),
    )
    table = shown.pivot("domain", index=["model", "neurons_of"], values="shown", maintain_order=True)
    order = [domain for domain in _domains(runs) if domain in table.columns]
    table = table.select("model", "neurons_of", *order).rename({domain: domain_name(domain) for domain in order})
    caption = (
        "Not in the paper. Rows: whose neurons are off, in all modules. Columns: whose questions are asked. Difference "
        "of accuracy to no ablation in percentage points, with its 95 % interval."
    )
    grid = Grid("cross", caption, table, long=frame)
    asked = [run for run in runs if run.answers]
    return Item("Cross matrix", title, (), (grid,), sources=_sources(asked, "answers"))
