"""Sections about what the layers say: Figures 6, 7 and 10 to 13, and Table 9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from markupsafe import Markup

from interventions.errors import OutOfRange
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.positions import place_of, positions_of
from mmneuron_lens.experiments.entropy import entropy_rows
from mmneuron_lens.paper import paper_numbers
from mmneuron_lens.paper.model_run import ModelRun, domains_of, sources_of, stacked
from mmneuron_lens.paper.other_lenses import SCROLLING, beside, jacobian_entropy, said_of_lenses
from mmneuron_lens.report import tables
from mmneuron_lens.report.flat import Values
from mmneuron_lens.report.heat import heat_of, heat_table
from mmneuron_lens.report.hover import hover
from mmneuron_lens.report.html_text import html, joined
from mmneuron_lens.report.layer_figures import entropy_figure
from mmneuron_lens.report.sections import Grid, Picture, Section, Source
from mmneuron_lens.report.tables import domain_name


@dataclass(frozen=True)
class Cases:
    """What a case of the logit lens shows.

    - at: positions, see `artifacts.positions.place_of`; "paper" stands for those that the paper shows of a domain. None
      for the second image token and the last text token.
    - even: only layers 2, 4, ..., as the paper.
    """

    at: tuple[str, ...] = ()
    even: bool = False


def figure_6(runs: Sequence[ModelRun], cases: Cases | None = None) -> Section:
    """One case a model: what the logit lens decodes at every layer, still and to be pointed at."""
    cases = cases or Cases()
    title = "What the layers say: the logit lens"
    chosen = [(run, trace) for run in runs if (trace := _first_case(run)) is not None]
    if not chosen:
        return Section(title, missing="no question was read layer by layer.", name="Figure 6")
    text = (
        "The hidden state after each layer, put through the final norm and the unembedding: the five most likely next "
        "tokens, from the page’s colour (0) to blue (1). The last layer is the model’s output, whose first token is "
        "the expected one; the right answer is named apart.",
        "Below each case, point at a patch of the image or a word of the prompt to read what it decodes to at each "
        "layer; a click holds it.",
    )
    after = [
        part
        for run, trace in chosen
        for part in (
            html("<h3>{}</h3>", run.model),
            _case(trace, cases),
            hover(trace.document(), trace.pictures, f"lens of {run.model}"),
        )
    ]
    after.append(said_of_lenses(chosen))
    for run, trace in chosen:
        if part := beside(run, trace, _positions(trace, cases)[0], cases.even):
            after += [html("<h3>{}</h3>", run.model), part]
    return Section(title, text, after=tuple(after), sources=_sources(chosen), name="Figure 6")


def figures_10_to_13(runs: Sequence[ModelRun], cases: Cases | None = None) -> Section:
    """The cases of the other domains."""
    cases = cases or Cases()
    title = "More cases of the logit lens, other domains"
    others = [(run, trace) for run in runs for trace in run.traces if trace is not _first_case(run)]
    if not others:
        return Section(title, missing="no question of another domain was read.", name="Figures 10–13")
    after: list[Markup] = []
    for run in runs:
        inner = joined(
            _case(trace, cases)
            + hover(trace.document(), trace.pictures, f"lens of {run.model}, {trace.domain}")
            + beside(run, trace, _positions(trace, cases)[0], cases.even)
            for owner, trace in others
            if owner is run
        )
        after.append(html("<details><summary>{}</summary>{}</details>", run.model, inner))
    return Section(title, after=tuple(after), sources=_sources(others), name="Figures 10–13")


def _sources(cases: Sequence[tuple[ModelRun, LensTrace]]) -> tuple[Source, ...]:
    kinds = ("traces", "jacobian traces", "neighbours")
    return tuple(source for run, trace in cases for source in run.sources(*kinds, domain=trace.domain))


def _first_case(run: ModelRun) -> LensTrace | None:
    """The paper's Figure 6 is of remote sensing; without it, the first domain's."""
    return next((trace for trace in run.traces if trace.domain == "remote_sensing"), next(iter(run.traces), None))


def _case(trace: LensTrace, cases: Cases) -> Markup:
    """One question: what some of its tokens decode to at every layer."""
    positions, absent = _positions(trace, cases)
    tables = [_heat(trace, position, cases.even) for position in positions]
    last = trace.last("text")
    question = html(
        "<b>{}</b> {} Answer: {}; the model’s most likely next token: {}.",
        *(domain_name(trace.domain), trace.question, " / ".join(trace.expected), trace.best(last)),
    )
    said = joined(html('<p class="note">{}</p>', one) for one in absent)
    row = joined(html(SCROLLING, one) for one in tables)
    return html('<div class="case"><p>{}</p>{}<div class="pair">{}</div></div>', question, said, row)


def _positions(trace: LensTrace, cases: Cases) -> tuple[list[str], list[str]]:
    """The positions of a question that are shown, and what is said of those that it does not have."""
    asked = [one for name in cases.at for one in (positions_of(trace.domain) if name == "paper" else (name,))]
    there, absent = list[str](), list[str]()
    for position in asked or _first_and_last(trace):
        try:
            place_of(position, trace.kinds)
            there.append(position)
        except OutOfRange as error:
            absent.append(f"Not shown: {error}")
    return there, absent


def _first_and_last(trace: LensTrace) -> tuple[str, str]:
    return ("image 2" if trace.kinds.count("image") > 1 else "image 1"), "text -1"


def _heat(trace: LensTrace, position: str, even: bool) -> Markup:
    """One position as a heatmap: the right answer is what the last text token should give, elsewhere the last layer's
    most likely token is expected."""
    place = place_of(position, trace.kinds)
    expected = f"next token expected {trace.best(place)!r}"
    if place == trace.last("text"):
        expected = f"right answer {' / '.join(trace.expected)!r}"
    name = trace.labels[place] if trace.kinds[place] == "image" else f"token {trace.labels[place]!r}"
    told = "" if position == "image 2" else f" ({position})"
    name = "last text token" if position == "text -1" else f"{name}{told}"
    return heat_table(heat_of(trace, place, even), f"{name}: {expected}")


def figure_7(runs: Sequence[ModelRun]) -> Section:
    """Entropy of the next-token distribution over layers, by domain and kind of token."""
    title = "Average entropy of the next-token distribution"
    read = [run for run in runs if run.entropies]
    if not read:
        return Section(title, missing="no entropy was read.", name="Figure 7")
    frame = pl.DataFrame([row for run in read for row in entropy_rows(run.entropies)])
    caption = (
        "Entropy in nats of the distribution that the logit lens decodes, mean over the tokens of a kind (weighted by "
        "tokens), on the identification prompts. Solid: text tokens. Dashed: image tokens. Layer 0 is the embedding."
    )
    values = Values.of("the entropy by the logit lens", "nats", frame, "entropy")
    picture = Picture("figure_7_entropy", caption, lambda theme: entropy_figure(frame, theme), values)
    wide = tables.wide(frame.drop("tokens"), "entropy", domains_of(read))
    grid = Grid("entropy", "The numbers behind the figure", wide, folded=True, decimals=3, long=frame)
    sources = sources_of(read, "entropies", "jacobian entropies")
    grids, pictures = jacobian_entropy(runs)
    return Section(title, (), (grid, *grids), (picture, *pictures), sources=sources, name="Figure 7")


def table_9(runs: Sequence[ModelRun]) -> Section:
    """Entropy at the embedding, at the paper’s two middle layers and at the output, over all domains."""
    title = "Average entropy in selected layers"
    read = [run for run in runs if run.entropies]
    if not read:
        return Section(title, missing="no entropy was read.", name="Table 9")
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
        known = paper_numbers.entropy(run.model)
        if known is not None:
            extra.append(known.with_columns(pl.lit(run.model).alias("model")))
    caption = "Average entropy of the vocabulary probability in nats, over all domains (weighted by tokens)."
    grids = [Grid("entropy_selected", caption, pl.DataFrame(rows, infer_schema_length=None), decimals=4)]
    if extra:
        grids.append(Grid("entropy_printed", "As the paper prints it.", stacked(extra), decimals=4))
    return Section(title, (), tuple(grids), sources=sources_of(read, "entropies"), name="Table 9")
