"""The section about the comparison: what it says of made numbers, whose answer is known."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.colors
import numpy
import polars as pl
import pytest
import torch

from mmneuron_lens.artifacts.comparison import DRAWN, Compared, NeuronComparison
from mmneuron_lens.evaluation.comparison_claims import matters
from mmneuron_lens.paper.comparison import compared
from mmneuron_lens.report.comparison_figures import RANDOM
from mmneuron_lens.report.looks import line_looks
from mmneuron_lens.report.page import Page, render
from mmneuron_lens.report.terminal import MATTERS

METHODS, DOMAINS, FRACTIONS = ("dape", "margin"), ("medical", "document", "own"), (0.01, 0.05)
QUESTIONS = 12


def made(effect: dict[tuple[str, str], float]) -> NeuronComparison:
    """Neurons of a method and domain move its answers by so much, random ones by none, on every question a bit else."""
    noise = numpy.random.default_rng(0).normal(0, 0.01, (len(DOMAINS) * QUESTIONS,))
    conditions = [Compared(DRAWN, "", one, {"llm.mlp.act": 4}, draw=1) for one in FRACTIONS]
    change = [0 * noise for _ in FRACTIONS]
    for method in METHODS:
        for domain in DOMAINS:
            for place, fraction in enumerate(FRACTIONS):
                told = {"neurons": {"llm.mlp.act": 4}, "draws": (place,)}
                conditions.append(Compared(method, domain, fraction, **told))
                change.append(effect.get((method, domain), 0.0) + noise * bool(effect))
    changes = torch.tensor(numpy.array(change), dtype=torch.float32)
    none = torch.full_like(changes, torch.nan)
    questions = tuple((domain, str(place)) for domain in DOMAINS for place in range(QUESTIONS))
    return NeuronComparison(
        "maker/model", DOMAINS, METHODS, tuple(conditions), questions,
        before=torch.full((len(questions),), -1.0), change=changes, deviation=changes.abs(),
        right_before=torch.full((len(questions),), torch.nan), right=none,
    )  # fmt: skip


def run_of(comparison: NeuronComparison) -> SimpleNamespace:
    return SimpleNamespace(model=comparison.model, comparison=comparison, planted=None, sources=lambda *_, **__: ())


@pytest.fixture(scope="module")
def found() -> NeuronComparison:
    return made({("dape", "medical"): -0.5, ("dape", "own"): -0.25, ("margin", "document"): 0.3})


def test_a_model_has_one_sentence_with_its_numbers(found):
    section = compared([run_of(found)])
    finding = matters(found, "dape", "medical", 0.01)
    assert finding.verdict == "holds"
    (sentence,) = section.text
    assert sentence == (
        "maker/model: with 1 % of the neurons off, those of dape matter more than as many random ones to the answers "
        f"of Medical ({number_of(sentence)} nats beyond random) and own; those of margin to those of no domain."
    )
    low, value, high = sorted(float(one.replace("−", "-")) for one in re.findall(r"−?\d\.\d+", number_of(sentence)))
    assert (finding.low, finding.value, finding.high) == pytest.approx((low, value, high), abs=0.0005)


def number_of(sentence: str) -> str:
    told = re.search(r"\((\S+ \[\S+, \S+\]) nats", sentence)
    assert told
    return told[1]


def test_the_table_marks_what_matters_and_nothing_else(found):
    section = compared([run_of(found)])
    table = section.grids[0].frame
    assert table.columns == ["model", "domain", "dape, nats", "margin, nats"]
    marked = {
        (row["domain"], method) for row in table.iter_rows(named=True) for method in METHODS
        if row[f"{method}, nats"].endswith(MATTERS)
    }  # fmt: skip
    assert marked == {("Medical", "dape"), ("own", "dape")}
    assert all(grid.folded for grid in section.grids[1:])
    assert section.grids[0].file["change"].dtype == pl.Float64


def test_more_methods_than_domains_are_rows(found):
    fewer = replace(
        found, domains=("medical",), questions=found.questions[:QUESTIONS],
        conditions=tuple(one for one in found.conditions if one.domain in ("", "medical")),
        **{name: getattr(found, name)[..., :QUESTIONS] for name in ("before", "right_before")},
        **{
            name: getattr(found, name)[[one.domain in ("", "medical") for one in found.conditions], :QUESTIONS]
            for name in ("change", "deviation", "right")
        },
    )  # fmt: skip
    table = compared([run_of(fewer)]).grids[0].frame
    assert table.columns == ["model", "method", "Medical, nats"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figure_fills_what_matters_and_shows_random_neurons(found, theme):
    (picture, *folded) = compared([run_of(found)]).pictures
    figure = picture.draw(theme)
    panels = {panel.get_title(loc="left"): panel for panel in figure.axes if panel.get_title(loc="left")}
    assert list(panels) == ["Medical", "Document", "own"]
    filled = set()
    for title, panel in panels.items():
        for line in panel.lines:
            for method, look in line_looks(METHODS).items():
                if line.get_marker() == look["marker"] and line.get_markerfacecolor() == look["color"]:
                    filled.add((method, title))
        assert panel.collections, "the band of random neurons"
    assert filled == {("dape", "Medical"), ("dape", "own")}
    (legend,) = [panel.get_legend() for panel in figure.axes if panel.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == [*METHODS, RANDOM]
    assert all(one.folded for one in folded)


def test_where_nothing_changes_a_sentence_stands_for_the_figure():
    section = compared([run_of(made({}))])
    said = "No figure: the change of the right answer’s log-probability in maker/model is 0\xa0nats everywhere."
    assert {one.instead for one in section.pictures} == {said}
    assert MATTERS not in "".join(map(str, section.grids[0].frame.rows()))


def test_what_is_folded_stands_behind_its_caption(found):
    section = compared([run_of(found)])
    html = render(Page("t", "l", ("r",), (section,)), {})
    for one in (*section.grids[1:], *section.pictures[1:]):
        assert f"<details><summary>{one.caption}" in html
    assert "<summary>How it was measured</summary>" in html


def test_lines_that_are_no_domains_are_told_apart():
    looks = line_looks([str(place) for place in range(12)])
    assert len({(one["color"], one["marker"]) for one in looks.values()}) == 12
    for look in looks.values():
        red, green, blue = (
            part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
            for part in matplotlib.colors.to_rgb(look["color"])
        )
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        # WCAG's contrast of graphics, on white and on the page's black.
        assert min(1.05 / (light + 0.05), (light + 0.05) / 0.0597) >= 3, look["color"]
