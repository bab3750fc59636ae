"""What every page of a run has in common: findings first, figures that say something, and what is long folded."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from test_compare import made  # noqa: F401
from test_report import PAGE, Cells, make_counts
from test_summary import found_of, save

from mmneuron_lens.artifacts.digits import interval
from mmneuron_lens.evaluation.findings import Claim, Finding
from mmneuron_lens.paper.ablation import table_2
from mmneuron_lens.paper.comparison import compared
from mmneuron_lens.paper.findings import findings_of, verdicts
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.paper.selected import figure_5, figure_9
from mmneuron_lens.paper.summary import summary_of
from mmneuron_lens.report import heat, page
from mmneuron_lens.report.flat import Values
from mmneuron_lens.report.page import Page
from mmneuron_lens.report.sections import LONGEST, Grid, Picture, Section

MODEL = "<m>"

LESS = "less than a figure could show"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ModelRun:
    out = tmp_path_factory.mktemp("pages")
    save(found_of(MODEL), out)
    return ModelRun(out, MODEL)


class Made(ModelRun):
    """A run that holds what it is given."""

    def __init__(self, **given: Any) -> None:
        super().__init__(Path(), MODEL)
        self.__dict__.update(given)

    def sources(self, *kinds: str, domain: str | None = None) -> tuple:
        return ()


for name in ("answers", "comparison", "counts", "selection", "effects", "overlap", "planted"):
    setattr(Made, name, property(lambda self, name=name: self.__dict__.get(name, () if name == "answers" else None)))


# --- figures that would say nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "visible", "sentence"),
    [
        ([0.0, 0.0, 0.0], 0.0, "No figure: the change is 0\xa0nats everywhere."),
        ([0.25, None, 0.25, math.nan], 0.0, "No figure: the change is 0.250\xa0nats everywhere."),
        ([0.0, 0.5], 1.0, f"No figure: the change is between 0 and 0.500\xa0nats everywhere, {LESS}."),
        ([None, math.nan], 0.0, "No figure: there is no number of the change."),
        ([0.0, 0.0, 1e-9], 0.0, ""),
        ([0.0, 1.5], 1.0, ""),
    ],
)  # fmt: skip
def test_what_a_figure_could_not_show_is_a_sentence(numbers, visible, sentence):
    values = Values.of("the change", "nats", numbers, visible=visible)
    assert Picture("one", "A caption", lambda theme: pytest.fail("drawn"), values).instead == sentence


def test_the_page_has_the_sentence_and_no_figure_of_it_is_left(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curve.png").write_bytes(b"of an earlier page")
    flat = replace(PAGE.sections[0].pictures[0], values=Values.of("the share", "%", [0, 0]))
    html = page.write(replace(PAGE, sections=(replace(PAGE.sections[0], pictures=(flat,)),)), tmp_path).read_text()
    assert '<p class="instead">No figure: the share is 0\xa0% everywhere.</p>' in html
    assert "<img" not in html
    assert "A curve" not in html
    assert not list((tmp_path / "figures").iterdir())


def test_silent_neurons_answers_selections_and_comparisons_without_a_difference_are_not_drawn(run, made):  # noqa: F811
    counts = [
        replace(one, active={site: all_.clamp(min=1) for site, all_ in one.active.items()}) for one in make_counts()
    ]
    (silent,) = figure_9([Made(counts=counts)]).pictures
    assert silent.instead == "No figure: the share of silent neurons in the vision layers of <m> is 0\xa0% everywhere."
    # One of 60 neurons is more than a bar can hide.
    for one in counts:
        one.active["vision.mlp.act"][:, 2, :, 7] = 0
    assert figure_9([Made(counts=counts)]).pictures[0].instead == ""

    same = [replace(one, answer="yes") for one in run.answers]
    assert [one.instead for one in table_2([run]).pictures] == [""]
    fake = SimpleNamespace(answers=same, scoring=run.scoring, metrics=run.metrics, model=MODEL, selection=run.selection)
    fake.sources = lambda *kinds, domain=None: ()
    (ablation,) = table_2([fake]).pictures  # type: ignore[list-item]
    assert ablation.instead == "No figure: the change of accuracy of <m> is 0\xa0percentage points everywhere."

    none = replace(run.selection, masks={site: torch.zeros_like(mask) for site, mask in run.selection.masks.items()})
    assert [one.instead for one in figure_5([run]).pictures] == [""]
    (layers,) = figure_5([Made(selection=none)]).pictures
    assert layers.instead == "No figure: the number of neurons of <m> by domain and layer is 0 everywhere."

    assert {one.instead for one in compared([Made(comparison=made)]).pictures} == {""}
    still = replace(made, change=torch.zeros_like(made.change))
    said = {one.instead for one in compared([Made(comparison=still)]).pictures}
    assert said == {"No figure: the change of the right answer’s log-probability in <m> is 0\xa0nats everywhere."}


def test_every_figure_says_which_numbers_it_is_about(run):
    pictures = [one for section in summary_of([run]).sections for one in section.pictures]
    assert len(pictures) == 3
    assert [one.name for one in pictures if one.values is None] == []


# --- order ------------------------------------------------------------------------------------------------------------


def test_findings_come_first_and_the_provenance_last_and_closed():
    found = replace(PAGE, findings=(("It is so.", "By 2 [1, 3]."),), facts=(("the page again", "mmneuron report RUN"),))
    html = page.render(found, {})
    heads = re.findall(r"<h2>(?:<span[^>]*>.*?</span> )?(.*?)</h2>", html)
    assert heads == ["Findings", "The paper’s claims, tested here", "Plain", "Named", "How it was run"]
    assert "<li><strong>It is so.</strong> By 2 [1, 3].</li>" in html
    body, provenance = html.split('<details class="provenance" id="provenance">')
    assert "How it was run" in body
    assert "The 13B model was not run." in body
    assert not set(re.findall(r"<(section|h2|figure|nav)\b", provenance))
    for text in ("mmneuron report RUN", "torch 1.2", "ab" * 32, "counts/a.safetensors"):
        assert text in provenance
    assert "ab" * 32 not in body
    assert not re.search(r"<details[^>]* open", html)


def test_a_section_has_its_figures_before_its_tables_and_folds_how_it_was_measured():
    rows = pl.DataFrame({"row": [f"r{number}" for number in range(LONGEST + 1)]})
    grids = (Grid("long", "A long one.", rows), Grid("short", "A short one.", rows.head(LONGEST)))
    section = replace(PAGE.sections[0], grids=grids, how=("By counting.",))
    html = page.render(replace(PAGE, sections=(section,)), {})
    places = [
        html.index(text) for text in ("<figcaption>A curve", "A short one.</figcaption>", "A long one ", "By counting.")
    ]
    assert places == sorted(places)
    assert f'<details><summary>A long one <span class="count">({LONGEST + 1} rows)</span></summary>' in html
    assert '<details class="how"><summary>How it was measured</summary>\n<p>By counting.</p>' in html


def test_tables_scroll_in_a_named_box_and_numbers_stand_right():
    frame = pl.DataFrame({
        "name": ["1", "2"], "count": [1, 2], "change": ["−0.03 [−0.05, −0.01]", "–"],
        "tiny": ["(1.5 [−2.1, 6.0])×10⁻⁵", "0"],
        "marked": ["0.2 [0.1, 0.3] ●", "1 %"], "word": ["1", "one"], "nothing": ["–", None],
    })  # fmt: skip
    grid = Grid("t", "What it is", frame)
    assert grid.numeric == {"count", "change", "tiny", "marked"}
    html = page.render(Page("t", "l", (), (Section("s", grids=(grid,)),)))
    assert '<div class="scroll" tabindex="0" role="region" aria-label="table: What it is">' in html
    assert re.findall(r'<th scope="col"( class="number")?>', html) == ["", *[' class="number"'] * 4, "", ""]
    assert '<td class="number">−0.03 [−0.05, −0.01]</td>' in html
    assert [row[0] for row in Cells(html).tables[0]] == ["name", "1", "2"]


# --- heat maps --------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    parts = [part / 255 for part in bytes.fromhex(colour[1:])]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read_on_every_colour_of_a_heatmap(theme):
    text = heat.SCALES[theme].text
    shares = [heat.colour(step / 100, theme) for step in range(101)]
    assert min(contrast(text, one) for one in (*shares, heat.SCALES[theme].minus)) >= 4.5
    # More is further from the paper.
    steps = [contrast(heat.SCALES[theme].zero, one) for one in shares]
    assert steps == sorted(steps)
    assert steps[-1] > 2.5


def test_the_style_has_the_colours_of_the_heatmaps():
    light, dark = page.own_file("style.css").split("prefers-color-scheme: dark", 1)
    for theme, style in (("light", light), ("dark", dark)):
        scale = heat.SCALES[theme]
        assert f"--heat-zero: {scale.zero}; --heat-one: {scale.one}; --heat-text: {scale.text};" in style
        assert f"--paper: {scale.zero}; --ink: {scale.text};" in style


# --- findings ---------------------------------------------------------------------------------------------------------


def test_findings_have_the_numbers_of_the_artifacts(run):
    (specific, _), (_, halves), (_, accuracy) = ((short, said) for short, said in findings_of([run]))
    effect, told = run.effects.effect()["held_out"], findings_of([run])[0][1]  # type: ignore[union-attr]
    odds = [math.exp(effect[end]) for end in ("value", "low", "high")]
    assert f"{interval(*odds)} in {MODEL}" in told
    assert ("specific to domains, on other images too" in specific) == (odds[1] > 1)
    assert f"{MODEL}: {run.overlap.mean(None):.2g}." in halves  # type: ignore[union-attr]
    # Of the last domain half of the eight answers are lost, of random neurons none.
    assert "Auto Driving (−50" in accuracy
    assert "Common Scenes" not in accuracy
    assert findings_of([Made(answers=[], selection=run.selection)]) == ()


def test_findings_of_a_comparison_say_where_the_interval_is_below_zero(made):  # noqa: F811
    ((short, said),) = findings_of([Made(comparison=made, selection=SimpleNamespace(parameters={"method": "b"}))])
    assert short == "They are not shown to matter to the answers more than as many random neurons, in any domain."
    assert "Domain by domain the whole interval is below 0 in none of the 2 domains." in said
    ((short, said),) = findings_of([Made(comparison=made, selection=SimpleNamespace(parameters={"method": "a"}))])
    assert "the whole interval is below 0 in x of <m>." in said
    assert "random neurons" in short


def test_verdicts_are_counted_by_model():
    def claim(number: str, *found: str) -> Claim:
        return Claim(number, "s", tuple(Finding(f"m{place}", "", 1, 0, 2, one) for place, one in enumerate(found)))  # type: ignore[arg-type]

    found = (claim("1", "holds", "does not hold"), claim("2", "holds", "not run"), claim("3", "not decided", "holds"))
    said = verdicts(found)
    assert said == (
        ("2 of the paper’s 3 statements hold for m0.", "Hold: 1, 2; not decided: 3."),
        ("1 of the paper’s 3 statements holds for m1.", "Hold: 3; do not hold: 1; not run: 2."),
    )


def test_the_run_says_what_its_page_was_made_of(run):
    (run.out / "problems.txt").write_text("one\ntwo\n")
    facts = dict(summary_of([run]).facts)
    assert facts["the page again"] == "mmneuron select RUN --method dape --fraction 0.1 --percentile 0.95"
    assert facts["skipped"] == "2 records, named in problems.txt"
    assert "model id: <m>" in facts[MODEL]
    assert facts["corpus, medical"] == "name: medical corpus"
    assert "fraction: 0.1" in facts["selection, <m>"]
