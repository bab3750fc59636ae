"""Items about what the layers say: Figures 6, 7 and 10 to 13, and Table 9."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import polars as pl
import torch
from markupsafe import Markup

from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.experiments.read import entropy_rows
from mmneuron_lens.paper import paper_numbers as printed
from mmneuron_lens.paper.model_run import ModelRun, domains_of, sources_of, stacked, without_domains
from mmneuron_lens.report import heat
from mmneuron_lens.report.entropy_figure import entropy_figure
from mmneuron_lens.report.hover import hover
from mmneuron_lens.report.page import Grid, Picture
from mmneuron_lens.report.paper_page import Item, Source
from mmneuron_lens.report.tables import domain_name


def figure_6(runs: Sequence[ModelRun]) -> Item:
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


def figures_10_to_13(runs: Sequence[ModelRun]) -> Item:
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
        source for domain in domains_of(runs) if domain != "remote_sensing" for source in _trace_sources(runs, domain)
    )
    return Item("Figures 10–13", title, after=tuple(after), sources=sources)


def _case(trace: LensTrace) -> Markup:
    """One question: what its second image token and its last text token decode to at every layer."""
    image = trace.position("image", 1 if trace.kinds.count("image") > 1 else 0)
    last = trace.last("text")
    parts = (
        heat.table(heat.heat_of(trace, image), f"{trace.labels[image]}: next token expected {trace.best(image)!r}"),
        heat.table(heat.heat_of(trace, last), f"last text token: right answer {' / '.join(trace.expected)!r}"),
    )
    question = f"<b>{escape(domain_name(trace.domain))}</b> {escape(trace.question)} Answer: "
    question += f"{escape(' / '.join(trace.expected))}; the model’s most likely next token: {escape(trace.best(last))}."
    pair = "".join(
        f'<div class="scroll" tabindex="0" role="region" aria-label="heatmap">{part}</div>' for part in parts
    )
    return Markup(f'<div class="case"><p>{question}</p><div class="pair">{pair}</div></div>')


def _trace_sources(runs: Sequence[ModelRun], domain: str) -> tuple[Source, ...]:
    found = []
    for run in runs:
        for file in run.files("traces/1"):
            trace = LensTrace.load(file)
            if trace.domain == domain:
                facts = {
                    "id": trace.id,
                    "question": trace.question,
                    **trace.parameters,
                    **without_domains(trace.provenance),
                }
                found.append(run.source(file, facts))
    return tuple(found)


def figure_7(runs: Sequence[ModelRun]) -> Item:
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
    wide = wide.rename({domain: domain_name(domain) for domain in domains_of(read)})
    grid = Grid("entropy", "The numbers behind the figure", wide, folded=True, decimals=3, long=frame)
    return Item("Figure 7", title, (), (grid,), (picture,), sources=sources_of(read, "entropies"))


def table_9(runs: Sequence[ModelRun]) -> Item:
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
        grids.append(Grid("entropy_printed", "As the paper prints it.", stacked(extra), decimals=4))
    return Item("Table 9", title, (), tuple(grids), sources=sources_of(read, "entropies"))
