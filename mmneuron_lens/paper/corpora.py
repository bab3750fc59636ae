"""Sections about the data: the corpora (Table 4), and where their images lie (Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mmneuron_lens.experiments.embed import component_rows
from mmneuron_lens.paper.model_run import ModelRun, sources_of, stacked
from mmneuron_lens.report.embedding_figure import embedding_figure
from mmneuron_lens.report.sections import Grid, Picture, Section
from mmneuron_lens.report.tables import domain_name
from mmneuron_lens.report.unreachable import marked, notes_of, of_counts

LLM = "llm.mlp.act"


def table_4(runs: Sequence[ModelRun]) -> Section:
    """Questions and tokens of each domain."""
    rows = []
    for counts in runs[0].counts:
        own = {run.model: some for run in runs for some in run.counts if some.domain == counts.domain}
        tokens = {f"LLM tokens, {model}": int(one.tokens[LLM].sum()) for model, one in own.items() if LLM in one.tokens}
        corpus = counts.provenance.get("corpus")
        name = corpus.get("name") if isinstance(corpus, dict) else corpus
        answered = len({one.id for one in runs[0].answers if one.domain == counts.domain})
        row = {"domain": domain_name(counts.domain), "corpus": name, "identifying questions": counts.samples}
        rows.append({**row, "answered questions": answered, **tokens})
    if not rows:
        return Section("Domains and corpora", missing="no neurons were counted.", name="Table 4")
    frame = pl.DataFrame(rows, infer_schema_length=None)
    caption = "Questions asked in each domain, and the tokens they come to in each model."
    everything = stacked(one.to_frame() for run in runs for one in run.counts)
    known = {run.model: run.counts[0].reachability for run in runs if run.counts}
    grids = (
        Grid("corpora", caption, frame),
        Grid(
            "tokens",
            "The tokens counted at every site, by kind",
            marked(everything, known),
            folded=True,
            long=everything,
            notes=notes_of({model: of_counts(one) for model, one in known.items()}),
        ),
    )
    return Section("Domains and corpora", (), grids, sources=sources_of(runs, "counts"), name="Table 4")


def figure_2(runs: Sequence[ModelRun]) -> Section:
    """Every image’s pooled embedding on two principal components, a panel a model."""
    title = "Image embeddings on two principal components"
    found = [run.embeddings for run in runs if run.embeddings is not None]
    if not found:
        return Section(title, missing="no image was embedded.", name="Figure 2")
    frame = pl.DataFrame([row for one in found for row in component_rows(one)])
    sizes = ", ".join(f"{len(one.domain_of)} images of {one.model}" for one in found)
    caption = (
        f"The vision encoder’s pooled output, centred and not scaled, on its first two principal components; {sizes}. "
        "Of an image in tiles, the overview tile. Each model has axes of its own."
    )
    picture = Picture("figure_2_embeddings", caption, lambda theme: embedding_figure(frame, theme))
    grid = Grid("figure_2_embeddings", "The points of the figure", frame, folded=True)
    sources = sources_of(runs, "embeddings")
    return Section(title, (), (grid,), (picture,), sources=sources, name="Figure 2")
