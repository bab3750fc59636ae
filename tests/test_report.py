"""The report room: tables against the artifacts, figures against the tables, and the page with its files."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import polars as pl
import pytest
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.console import Console

from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.selection import Selection, module_of
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.evaluation.findings import Claim, Finding
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.report import figures, page, tables
from mmneuron_lens.report.ablation_figures import ablation_figure
from mmneuron_lens.report.claims_table import claims_table
from mmneuron_lens.report.layer_figures import layer_figure, silent_figure
from mmneuron_lens.report.looks import DOMAIN_COLOURS
from mmneuron_lens.report.page import Page
from mmneuron_lens.report.sections import Grid, Picture, Section, Source
from mmneuron_lens.report.terminal import terminal_table

SHAPES = {
    "vision.mlp.act": (4, 60),
    "qformer.query.act": (3, 50),
    "qformer.text.act": (3, 50),
    "projector.act": (1, 70),
}
MODULES = ["Vision Encoder", "MLP Projector", "Q-Former"]


def make_counts() -> list[Counts]:
    generator = torch.Generator().manual_seed(4)
    counts = []
    for number, domain in enumerate(DOMAINS):
        active, tokens = {}, {}
        for site, (layers, neurons) in SHAPES.items():
            tokens[site] = torch.randint(5, 40, (BUCKETS, 1), generator=generator)
            share = torch.rand(1, layers, 1, neurons, generator=generator) ** 3
            active[site] = (share * tokens[site][:, None, :, None]).long()
            active[site][:, :, :, :3] = 0
        facts = {"model id": "<m>", "prompt": "<image>\n{question}", "corpus": {"name": f"{domain} corpus"}}
        counts.append(
            Counts("<m>", domain, active, tokens, {site: ("image",) for site in SHAPES}, 1230 + number, facts)
        )
    return counts


def ablation_rows() -> list[dict[str, Any]]:
    rows = []
    for number, domain in enumerate(DOMAINS):
        none = {"model": "<m>", "module": "None", "condition": "none", "domain": domain, "accuracy": 50.3 + number}
        rows.append({**none, "difference": 0.0, "low": None, "high": None, "questions": 500})
        for place, module in enumerate([*MODULES, "All"]):
            for draw, condition in enumerate(("domain", "random 0", "random 1")):
                difference = 0.7 * place - 1.3 * draw + 0.1 * number
                row = {**none, "module": module, "condition": condition, "accuracy": none["accuracy"] + difference}
                rows.append(
                    {**row, "difference": difference, "low": difference - 2, "high": difference + 1.5, "questions": 500}
                )
    return rows


@pytest.fixture(scope="module")
def counts() -> list[Counts]:
    return make_counts()


@pytest.fixture(scope="module")
def selection(counts: list[Counts]) -> Selection:
    return select(counts, fraction=0.1)


class Cells(HTMLParser):
    """Collects the text of each table cell, and the attributes that load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "srcset")]
        self.loads += [value or "" for name, value in attrs if name == "href" and not (value or "").startswith("#")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def test_neurons_per_domain_is_the_masks(selection: Selection) -> None:
    frame = tables.neurons_per_domain(selection)
    assert frame.columns == ["model", "module", "domain", "neurons", "reachable"]
    assert frame["module"].unique(maintain_order=True).to_list() == MODULES
    for row in frame.iter_rows(named=True):
        masks = [mask for site, mask in selection.masks.items() if module_of(site) == row["module"]]
        assert row["neurons"] == sum(int(mask[..., DOMAINS.index(row["domain"])].sum()) for mask in masks)
    by_site = tables.neurons_per_domain(selection, by="site")
    assert by_site["neurons"].sum() == frame["neurons"].sum()
    assert by_site.columns == ["model", "module", "site", "domain", "neurons", "reachable"]


def test_layer_distribution_is_the_masks(selection: Selection) -> None:
    frame = tables.layer_distribution(selection)
    assert frame.columns == ["model", "module", "site", "layer", "reaches_logits", "domain", "neurons"]
    assert len(frame) == len(DOMAINS) * sum(layers for layers, _ in SHAPES.values())
    for row in frame.iter_rows(named=True):
        mask = selection.masks[row["site"]][row["layer"], :, DOMAINS.index(row["domain"])]
        assert row["neurons"] == int(mask.sum())


def test_selection_summary_and_silent(selection: Selection, counts: list[Counts]) -> None:
    for row in tables.selection_summary(selection).iter_rows(named=True):
        site = row["site"]
        assert row["neurons"] == SHAPES[site][0] * SHAPES[site][1]
        assert row["selected"] == selection.selected(site)
        assert row["shortfall"] == row["requested"] - row["selected"]
        assert row["threshold"] == selection.threshold[site]
    frame = tables.silent(counts)
    assert frame.columns == ["model", "site", "layer", "reaches_logits", "silent", "neurons"]
    assert frame["silent"].min() >= 3  # type: ignore[operator]
    for row in frame.iter_rows(named=True):
        total = torch.stack([one.active[row["site"]] for one in counts]).sum((0, 1, 3))
        assert row["silent"] == int((total[row["layer"]] == 0).sum())


def test_control_has_modules_their_branches_and_all() -> None:
    discovery = FalseDiscovery(
        "m",
        {"qformer.query.act": 10, "qformer.text.act": 30, "llm.mlp.act": 0},
        {"qformer.query.act": (1, 3), "qformer.text.act": (5, 7), "llm.mlp.act": (0, 0)},
        {},
    )
    overlap = HalvesOverlap(
        "m",
        {"qformer.query.act": (1, 2), "qformer.text.act": (3, 4), "llm.mlp.act": (0, 0)},
        {"qformer.query.act": (4, 4), "qformer.text.act": (4, 8), "llm.mlp.act": (0, 0)},
        {},
    )
    frame = tables.control(discovery, overlap)
    assert frame.columns == [
        *("model", "module", "fdr", "null_mean", "selected", "reachable", "overlap_mean", "overlap_min", "overlap_max")
    ]
    assert frame["module"].to_list() == ["Q-Former", "qformer.query.act", "qformer.text.act", "LLM", "All"]
    assert frame.row(0)[2:] == (0.2, 8.0, 40, None, 0.5, 0.5, 0.5)
    assert frame.row(1)[2:] == (0.2, 2.0, 10, None, 0.375, 0.25, 0.5)
    assert frame["fdr"].is_nan().to_list() == [False, False, False, True, False]
    assert tables.shown(frame["fdr"][3]) == "–"


def test_wide_puts_each_domain_in_its_column(selection: Selection) -> None:
    frame = tables.wide(tables.neurons_per_domain(selection), "neurons", DOMAINS)
    assert frame.columns == ["model", "module", *map(tables.domain_name, DOMAINS)]
    for row in frame.iter_rows(named=True):
        for domain in DOMAINS:
            masks = selection.neurons(domain, row["module"]).values()
            assert row[tables.domain_name(domain)] == sum(int(mask.sum()) for mask in masks)


def test_ablation_takes_exactly_its_columns() -> None:
    frame = tables.ablation(ablation_rows())
    assert frame.columns == list(tables.ABLATION)
    assert frame.to_dicts() == ablation_rows()
    row = ablation_rows()[0]
    row["score"] = row.pop("accuracy")
    with pytest.raises(ValueError, match=r"ablation row 1 lacks \['accuracy'\] and has unknown \['score'\]; give"):
        tables.ablation([ablation_rows()[0], row])


def draw(theme: figures.Theme) -> Figure:
    figure, _ = figures.panels(["one"], 1.0, [])
    return figure


FRAME = pl.DataFrame({"model": ["<m>", "<m>"], "module": ["LLM", "All"], "neurons": [1234, 5], "share": [0.25, 0.0125]})
GRIDS = (
    Grid("first", "A caption", FRAME, most=True),
    Grid("behind", "Folded <b>", FRAME.drop("module"), folded=True, decimals=2, long=FRAME.head(1)),
)
SOURCES = (Source("counts/a.safetensors", "ab" * 32, (("prompt", "<image>\n{question}"),)),)
FINDINGS = (Finding("<m>", "how many", 2.0, 1.5, 3.25, "not decided", "layers", "Few <layers>."),)
PAGE = Page(
    title="A <title>",
    lead="What it is.",
    run=("One paragraph.", "Another."),
    sections=(
        Section("Plain", ("Said <first>.",), GRIDS, (Picture("curve", "A curve", draw),), sources=SOURCES),
        Section("Absent", missing="nothing was asked.", name="Table 7"),
        Section("Named", after=(Markup('<p class="own">HTML</p>'),), sources=SOURCES, name="Figure 6"),
    ),
    claims=(Claim("1", "It <holds>.", FINDINGS),),
    not_run=("The 13B model was not run.",),
    versions=(("torch", "1.2"),),
)


@pytest.fixture(scope="module")
def html() -> str:
    return page.render(PAGE)


def test_every_table_is_on_the_page_in_csv_and_in_latex(html: str, tmp_path: Path) -> None:
    assert page.write(PAGE, tmp_path) == tmp_path / "index.html"
    assert (tmp_path / "index.html").read_text() == html
    rows = [row for table in Cells(html).tables for row in table]
    assert ["LLM", "1,234", "0.250"] in rows
    assert ["1,234", "0.25"] in rows
    assert ["module", "neurons", "share"] in rows
    written = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert {*written} == {
        *("index.html", "curve.png", "first.csv", "first.tex", "behind.csv", "behind.tex", "claims.csv", "claims.tex")
    }
    assert pl.read_csv(written["first.csv"]).equals(FRAME)
    assert pl.read_csv(written["behind.csv"]).equals(FRAME.head(1))
    assert "1,234 & 0.25 \\\\" in written["behind.tex"].read_text()
    assert "\\caption{A caption}" in written["first.tex"].read_text()
    assert pl.read_csv(written["claims.csv"])["high"].to_list() == [3.25]
    assert written["curve.png"].read_bytes() == figures.png(draw("light"))


def test_another_page_of_a_folder_has_its_own_tables_and_figures(tmp_path: Path) -> None:
    page.write(PAGE, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = replace(PAGE, title="Another", claims=(), sections=(replace(PAGE.sections[0], grids=GRIDS[:1]),))
    assert page.write(other, tmp_path, "selection") == tmp_path / "selection.html"
    assert {file: file.read_bytes() for file in before} == before
    new = {file for file in tmp_path.rglob("*") if file.is_file()} - before.keys()
    assert {str(file.relative_to(tmp_path)) for file in new} == {
        "selection.html", "tables/selection/first.csv", "tables/selection/first.tex", "figures/selection/curve.png",
    }  # fmt: skip


def test_the_page_is_self_contained_and_escaped(html: str) -> None:
    cells = Cells(html)
    assert len(cells.loads) == 2
    assert all(load.startswith("data:image/png;base64,") for load in cells.loads)
    assert not cells.tags & {"link", "iframe", "object", "title>", "m", "image", "layers", "holds", "first"}
    assert "url(" not in html
    assert "@import" not in html
    assert "<h1>A &lt;title&gt;</h1>" in html
    assert "Said &lt;first&gt;." in html
    assert "Folded &lt;b&gt;" in html
    assert ["prompt", "<image>\n{question}"] in [row for table in cells.tables for row in table]
    anchors, links = re.findall(r' id="([^"]+)"', html), re.findall(r'href="#([^"]+)"', html)
    assert len(set(anchors)) == len(anchors)
    assert set(links) == set(anchors)


def test_bold_is_the_most_of_each_row_and_only_there(html: str) -> None:
    assert re.findall(r'class="number most">([^<]*)<', html) == ["1,234", "5"]


def test_what_was_not_run_is_said(html: str) -> None:
    assert "<li>The 13B model was not run.</li>" in html
    assert '<p class="absent">Not run: nothing was asked.</p>' in html
    assert '<a href="#table-7" class="absent">Table 7</a>' in html
    bare = page.render(Page("t", "l", (), ()))
    assert "Nothing that this page has a place for was left out." in bare
    assert not any(text in bare for text in ('id="claims"', 'id="artifacts"', "Written with"))


def test_claims_are_shown_with_interval_and_verdict(html: str) -> None:
    assert '<span class="verdict not-decided">not decided</span>' in html
    assert '<span class="measured">2.00 [1.50, 3.25] layers</span>' in html
    assert claims_table(()).columns == claims_table(PAGE.claims).columns


def test_the_script_of_the_lens_comes_with_a_lens_only(html: str) -> None:
    assert "querySelectorAll" in html
    assert "querySelectorAll" not in page.render(replace(PAGE, sections=PAGE.sections[:1]), {})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_deterministic_whatever_the_settings(
    selection: Selection, counts: list[Counts], theme: figures.Theme
) -> None:
    cases = (
        (layer_figure, tables.layer_distribution(selection)),
        (silent_figure, tables.silent(counts)),
        (ablation_figure, tables.ablation(ablation_rows())),
    )
    for draw, frame in cases:
        first = figures.png(draw(frame, theme))
        with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "savefig.dpi": 20}):
            assert figures.png(draw(frame, theme)) == first
        assert not re.search(rb"tEXt|tIME|matplotlib", first)


def test_layer_figure_draws_the_sums_of_each_module_in_the_domains_colours(selection: Selection) -> None:
    frame = tables.layer_distribution(selection)
    panels = layer_figure(frame).axes
    assert [panel.get_title(loc="left") for panel in panels] == MODULES
    for panel, module in zip(panels, MODULES, strict=True):
        for line, domain in zip(panel.lines, DOMAINS, strict=True):
            sums = sum(selection.neurons(domain, module)[site].sum(1) for site in selection.neurons(domain, module))
            assert list(line.get_ydata()) == torch.as_tensor(sums).tolist()
            assert line.get_color() == DOMAIN_COLOURS[domain]
            assert max(line.get_ydata()) <= panel.get_ylim()[1]


def test_silent_figure_stacks_to_one(counts: list[Counts]) -> None:
    frame = tables.silent(counts)
    for panel, site in zip(silent_figure(frame).axes, frame["site"].unique(maintain_order=True), strict=True):
        layers = SHAPES[site][0]
        heights = [bar.get_height() for bar in panel.patches]
        here = frame.filter(pl.col("site") == site)
        assert heights[:layers] == pytest.approx((here["silent"] / here["neurons"]).to_list())
        assert [a + b for a, b in zip(heights[:layers], heights[layers:], strict=True)] == pytest.approx([1] * layers)
        assert [bar.get_y() for bar in panel.patches] == pytest.approx([0] * layers + heights[:layers])


def test_ablation_figure_shows_every_condition_but_none() -> None:
    panels = ablation_figure(tables.ablation(ablation_rows())).axes
    assert [panel.get_title(loc="left") for panel in panels] == [*MODULES, "All"]
    points = [float(line.get_xdata()[0]) for panel in panels for line in panel.lines if len(line.get_xdata()) == 1]
    expected = [row["difference"] for row in ablation_rows() if row["condition"] != "none"]
    assert sorted(points) == pytest.approx(sorted(expected))


def test_terminal_table(selection: Selection) -> None:
    console = Console(width=160, file=StringIO(), record=True)
    console.print(terminal_table(tables.selection_summary(selection), "Selection"))
    text = console.export_text()
    assert "Selection, <m>" in text
    for site in SHAPES:
        assert f"{selection.threshold[site]:.3f}" in text


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (12345, "", "12,345"),
        (0.01234, "", "0.012"),
        (-1.44, "difference", "−1.4"),
        (None, "", "–"),
        (71.0, "accuracy", "71.0"),
    ],
)
def test_numbers_as_people_read_them(value: Any, column: str, text: str) -> None:
    assert tables.shown(value, column) == text


def test_figures_of_nothing_are_refused() -> None:
    none = [row for row in ablation_rows() if row["condition"] == "none"]
    with pytest.raises(ValueError, match="the frame has no rows to draw"):
        ablation_figure(tables.ablation(none))
