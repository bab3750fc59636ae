"""Colours of domains: one place for all figures and pages, told apart whatever the domains are called."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from mmneuron_lens.report import looks
from mmneuron_lens.report.ablation_figures import deviation_figure
from mmneuron_lens.report.flow_figure import flow_figure
from mmneuron_lens.report.latex import escaped
from mmneuron_lens.report.layer_figures import entropy_figure
from mmneuron_lens.report.looks import DOMAIN_COLOURS, colours_of, looks_of


def test_colours_of_domains_stand_in_one_file():
    folder = Path(looks.__file__).parent
    wanted = re.compile("|".join(DOMAIN_COLOURS.values()), re.IGNORECASE)
    assert [file.name for file in folder.glob("*.py") if wanted.search(file.read_text())] == ["looks.py"]


@pytest.mark.parametrize(
    "domains", [list(DOMAIN_COLOURS), ["medical", "a", "b", "c"], [f"d{place}" for place in range(8)]]
)
def test_domains_are_told_apart_by_colour_and_by_marker(domains):
    found = looks_of(domains)
    for name in ("color", "marker"):
        assert len({one[name] for one in found.values()}) == len(domains)
    assert [one["color"] for one in found.values()] == colours_of(domains)
    for domain in set(domains) & set(DOMAIN_COLOURS):
        assert found[domain]["color"] == DOMAIN_COLOURS[domain]


def test_figures_of_ones_own_domains_have_their_colours():
    domains = ["cats", "dogs", "medical"]
    rows = [{"model": "m", "domain": domain, "kind": kind, "layer": layer, "entropy": 1.0 + layer}
            for domain in domains for kind in ("text", "image") for layer in range(3)]  # fmt: skip
    (panel,) = entropy_figure(pl.DataFrame(rows)).axes
    assert [line.get_color() for line in panel.lines[::2]] == colours_of(domains)
    rows = [{"module": "LLM", "condition": "domain", "domain": domain, "deviation": 1.0, "low": 0.5, "high": 1.5}
            for domain in domains]  # fmt: skip
    (panel,) = deviation_figure(pl.DataFrame(rows)).axes
    assert [line.get_color() for line in panel.lines[1::2]] == colours_of(domains)


@pytest.mark.parametrize("layers", [4, 32, 80])
def test_ticks_of_layers_do_not_run_into_each_other(layers):
    rows = [{"domain": domain, "route": "image to last", "layer": layer, "change": -1.0, "low": -2.0, "high": 0.0}
            for domain in DOMAIN_COLOURS for layer in range(layers)]  # fmt: skip
    figure = flow_figure(pl.DataFrame(rows))
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [tick.label1.get_window_extent() for tick in panel.xaxis.get_major_ticks() if tick.label1.get_visible()]
        assert len(boxes) <= 6
        assert all(one.x1 + 4 < other.x0 for one, other in pairwise(boxes))


def test_numbers_are_written_in_latex():
    assert escaped("(−1.4)×10⁻⁶ ●") == r"($-$1.4)$\times$10$^{-}$$^{6}$ $\bullet$"
