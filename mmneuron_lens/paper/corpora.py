"""Items about what was asked: the corpora (Table 4), and where their images lie (Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.embeddings import Embeddings
from mmneuron_lens.artifacts.files import file_name
from mmneuron_lens.experiments.embed import component_rows
from mmneuron_lens.paper.model_run import ModelRun, sources_of, without_domains
from mmneuron_lens.report.embedding_figure import embedding_figure
from mmneuron_lens.report.page import Grid, Picture
from mmneuron_lens.report.paper_page import Item
from mmneuron_lens.report.tables import domain_name


def table_4(runs: Sequence[ModelRun], described: dict[str, Any]) -> Item:
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
        "Table 4", "Domains and corpora", (), (Grid("corpora", caption, frame),), sources=sources_of(runs, "counts")
    )


def figure_2(runs: Sequence[ModelRun]) -> Item:
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
    sources = tuple(
        run.source(file, {**one.parameters, **without_domains(one.provenance)}) for run, file, one in loaded
    )
    return Item("Figure 2", title, (), (grid,), (picture,), sources=sources)
