"""Sections about the data: the corpora (Table 4), and where their images lie (Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from torch import Tensor

from mmneuron_lens.artifacts.embeddings import MEAN_OVER
from mmneuron_lens.experiments.embed import component_rows
from mmneuron_lens.paper import paper_numbers
from mmneuron_lens.paper.model_run import ModelRun, sources_of, stacked
from mmneuron_lens.report.embedding_figure import embedding_figure
from mmneuron_lens.report.flat import Values
from mmneuron_lens.report.sections import Grid, Picture, Section
from mmneuron_lens.report.tables import domain_name, domain_names
from mmneuron_lens.report.unreachable import marked, notes_of, of_counts

LLM = "llm.mlp.act"

DEFINITIONS = {
    "common": "Photographs of daily life: people, things, places.",
    "remote_sensing": "The ground as sensors far above it record it, those of satellites for one.",
    "medical": "What diagnosis looks at: slices of CT, X-ray pictures and others made to see into the body.",
    "document": "Pages to be read: records, charts, pictures made of text.",
    "auto_driving": "The road as a camera on a vehicle sees it.",
}
"""What belongs to each domain, after Table 4."""


def table_4(runs: Sequence[ModelRun]) -> Section:
    """What each domain is, with an image of it, the questions and tokens of this run, and the paper's sizes."""
    rows, tokens, examples = [], [], []
    for counts in runs[0].counts:
        corpus = counts.provenance.get("corpus")
        name = corpus.get("name") if isinstance(corpus, dict) else corpus
        asked = {one.id for one in runs[0].answers if one.domain == counts.domain}
        judged = runs[0].comparison.questions if runs[0].comparison else ()
        answered = len(asked or {name for domain, name in judged if domain == counts.domain})
        row = {"domain": domain_name(counts.domain), "definition": DEFINITIONS.get(counts.domain), "corpus": name}
        row |= {"identifying questions": counts.samples, "answered questions": answered}
        rows.append({**row, **paper_numbers.corpus(counts.domain)})
        examples.append(_example(runs, counts.domain))
    if not rows:
        return Section("Domains and corpora", missing="no neurons were counted.", name="Table 4")
    for run in runs:
        counted = {one.domain: int(one.tokens[LLM].sum()) for one in run.counts if LLM in one.tokens}
        own = {name: counted[domain] for domain, name in domain_names(counted, ("model",)).items()}
        tokens.append({"model": run.model, **own})
    seen = any(picture is not None for picture in examples)
    caption = "What belongs to each domain; the questions asked here; and the corpora and their samples in the paper."
    caption += " Each image is of a question that was read layer by layer." if seen else ""
    sums = (
        "LLM tokens that the identifying questions come to. The paper names about 20 million a domain in LLaVA-NeXT, "
        "which its numbers of samples do not give."
    )
    frame = pl.DataFrame(rows, infer_schema_length=None)
    if not frame["answered questions"].sum():
        frame = frame.drop("answered questions")
    everything = stacked(one.to_frame() for run in runs for one in run.counts)
    known = {run.model: run.counts[0].reachability for run in runs if run.counts}
    grids = (
        Grid("corpora", caption, frame, examples=tuple(examples) if seen else ()),
        Grid("corpora_tokens", sums, pl.DataFrame(tokens, infer_schema_length=None)),
        Grid(
            "tokens",
            "The tokens counted at every site, by kind",
            marked(everything, known),
            folded=True,
            long=everything,
            notes=notes_of({model: of_counts(one) for model, one in known.items()}),
        ),
    )
    sources = (*sources_of(runs, "counts"), *(sources_of(runs, "traces") if seen else ()))
    return Section("Domains and corpora", (), grids, sources=sources, name="Table 4")


def _example(runs: Sequence[ModelRun], domain: str) -> Tensor | None:
    """An image of the domain that a run kept; the first of several."""
    traces = (trace for run in runs for trace in run.traces if trace.domain == domain and trace.pictures)
    return next((trace.pictures[0] for trace in traces), None)


def figure_2(runs: Sequence[ModelRun]) -> Section:
    """Every image’s embedding on two principal components, a panel a model."""
    title = "Image embeddings on two principal components"
    found = [run.embeddings for run in runs if run.embeddings is not None]
    if not found:
        return Section(title, missing="no image was embedded.", name="Figure 2")
    frame = pl.DataFrame([row for one in found for row in component_rows(one)])
    sizes = ", ".join(f"{len(one.domain_of)} images of {one.model}" for one in found)
    means = {one.model: one.parameters[MEAN_OVER] for one in found if MEAN_OVER in one.parameters}
    averaged = "".join(f" Of {model}, which pools nothing, the mean of {what}." for model, what in means.items())
    pooled = " Of an image in tiles, the overview tile." if len(means) < len(found) else ""
    caption = (
        f"The vision encoder’s {'pooled output' if pooled else 'output'}, centred and not scaled, on its first two "
        f"principal components; {sizes}.{pooled}{averaged} Each model has axes of its own."
    )
    values = Values.of("the place of every image", "", frame, "first", "second")
    picture = Picture("figure_2_embeddings", caption, lambda theme: embedding_figure(frame, theme), values)
    grid = Grid("figure_2_embeddings", "The points of the figure", frame, folded=True)
    sources = sources_of(runs, "embeddings")
    return Section(title, (), (grid,), (picture,), sources=sources, name="Figure 2")
