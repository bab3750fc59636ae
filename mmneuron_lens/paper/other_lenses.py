"""What stands behind Figures 6 and 7: the same tokens, and the same entropies, by lenses that are not in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import polars as pl
from markupsafe import Markup

from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.positions import place_of
from mmneuron_lens.experiments.entropy import entropy_rows
from mmneuron_lens.paper.model_run import ModelRun, domains_of
from mmneuron_lens.report import tables
from mmneuron_lens.report.flat import Values
from mmneuron_lens.report.heat import Heat, heat_of, heat_table, neighbour_heat
from mmneuron_lens.report.html_text import html, joined
from mmneuron_lens.report.layer_figures import entropy_figure
from mmneuron_lens.report.sections import Grid, Picture
from mmneuron_lens.report.tables import domain_name

HEADING = "Not in the paper: the same tokens by other lenses"

SCROLLING = '<div class="scroll" tabindex="0" role="region" aria-label="heatmap">{}</div>'


def said_of_lenses(cases: Sequence[tuple[ModelRun, LensTrace]]) -> Markup:
    """The heading of what follows, and what the lenses are; empty where no run has one."""
    banks = [
        one.parameters
        for run, trace in cases
        for one in run.neighbours
        if (one.domain, one.id) == (trace.domain, trace.id)
    ]
    read = bool(banks) or any(run.jacobian_traces for run, _ in cases)
    if not read:
        return html("")
    text = html("<h3>{}</h3>", HEADING)
    text += html(
        "<p>{}</p>",
        "Logit lens: what a state is in the last layer’s terms. Jacobian lens: what it disposes the model to say, here "
        "or later, by the mean Jacobian to the last layer, fitted on questions of this run. Nearest words: the words "
        "in context whose own states, after any layer, are nearest by cosine (after LatentLens, arXiv 2602.00462).",
    )
    if banks:
        number, texts = (banks[0][f"{name} in the bank"] for name in ("states", "texts"))
        text += html(
            '<p class="note">{}</p>',
            f"Nearest words are looked for among {number:,} states of {texts:,} texts, the questions that identified "
            "neurons with their answers: they name what these can name, and a high cosine means little where all "
            "states of a model are alike. Point at a word to see its cosine and where it stands.",
        )
    return text


def beside(run: ModelRun, trace: LensTrace, positions: Sequence[str], even: bool) -> Markup:
    """The positions of one question by every lens that was read; empty where that is the logit lens alone."""
    by_jacobian = next((one for one in run.jacobian_traces if (one.domain, one.id) == (trace.domain, trace.id)), None)
    near = next((one for one in run.neighbours if (one.domain, one.id) == (trace.domain, trace.id)), None)
    if by_jacobian is None and near is None:
        return html("")
    rows = html("")
    for position in positions:
        place = place_of(position, trace.kinds)
        shown: list[tuple[str, Heat]] = [("Logit lens", heat_of(trace, place, even))]
        if by_jacobian is not None:
            shown.append(("Jacobian lens", heat_of(by_jacobian, place, even)))
        if near is not None:
            shown.append(("Nearest words", neighbour_heat(near, place, even)))
        parts = joined(html(SCROLLING, heat_table(heat, name)) for name, heat in shown)
        name = trace.labels[place] if trace.kinds[place] == "image" else f"token {trace.labels[place]!r} ({position})"
        rows += html('<p>{}</p><div class="pair trio">{}</div>', name, parts)
    return html('<div class="case"><p><b>{}</b> {}</p>{}</div>', domain_name(trace.domain), trace.question, rows)


def jacobian_entropy(runs: Sequence[ModelRun]) -> tuple[tuple[Grid, ...], tuple[Picture, ...]]:
    """Figure 7 by the Jacobian lens: its numbers and its picture, or nothing."""
    read = [run for run in runs if run.jacobian_entropies]
    if not read:
        return (), ()
    frame = pl.DataFrame([row for run in read for row in entropy_rows(run.jacobian_entropies)])
    caption = (
        "Not in the paper. Entropy in nats of the distribution that the Jacobian lens decodes, on fewer of the same "
        "prompts; at the last layer it is the logit lens. Solid: text tokens. Dashed: image tokens."
    )
    values = Values.of("the entropy by the Jacobian lens", "nats", frame, "entropy")
    picture = Picture("entropy_jacobian", caption, partial(entropy_figure, frame), values)
    wide = tables.wide(frame.drop("tokens"), "entropy", domains_of(read))
    grid = Grid(
        "entropy_jacobian",
        "The numbers behind the figure of the Jacobian lens",
        wide,
        folded=True,
        decimals=3,
        long=frame,
    )
    return (grid,), (picture,)
