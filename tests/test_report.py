"""The report against the artifacts it shows: every number on the page, in the CSV files, in the figures' data."""

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
from rich.console import Console

from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.selection import module_of
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.neurons.controls import false_discovery_rate, halves_overlap
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.report import figures, page, tables
from mmneuron_lens.report.page import Report, Section

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
def report() -> Report:
    counts = make_counts()
    selection = select(counts, fraction=0.1)
    return Report(
        title="A <title>",
        selection=selection,
        counts=tuple(counts),
        wider=select(counts, fraction=0.3),
        discovery=false_discovery_rate(counts, selection, permutations=3),
        overlap=halves_overlap(counts, fraction=0.1, splits=2),
        ablation=tables.ablation(ablation_rows()),
        not_run=("The 13B model was not run.",),
    )


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return page.render(report)


@pytest.fixture
def _no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes a second a page, where a test is about words."""
    monkeypatch.setattr(page, "_image", lambda picture: "")


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


def test_neurons_per_domain_is_the_masks(report: Report) -> None:
    frame = tables.neurons_per_domain(report.selection)
    assert frame.columns == ["model", "module", "domain", "neurons"]
    assert frame["module"].unique(maintain_order=True).to_list() == MODULES
    for row in frame.iter_rows(named=True):
        masks = [mask for site, mask in report.selection.masks.items() if module_of(site) == row["module"]]
        assert row["neurons"] == sum(int(mask[..., DOMAINS.index(row["domain"])].sum()) for mask in masks)
    by_site = tables.neurons_per_domain(report.selection, by="site")
    assert by_site["neurons"].sum() == frame["neurons"].sum()
    assert by_site.columns == ["model", "module", "site", "domain", "neurons"]


def test_layer_distribution_is_the_masks(report: Report) -> None:
    frame = tables.layer_distribution(report.selection)
    assert frame.columns == ["model", "module", "site", "layer", "domain", "neurons"]
    assert len(frame) == len(DOMAINS) * sum(layers for layers, _ in SHAPES.values())
    for row in frame.iter_rows(named=True):
        mask = report.selection.masks[row["site"]][row["layer"], :, DOMAINS.index(row["domain"])]
        assert row["neurons"] == int(mask.sum())


def test_selection_summary_and_silent(report: Report) -> None:
    for row in tables.selection_summary(report.selection).iter_rows(named=True):
        site = row["site"]
        assert row["neurons"] == SHAPES[site][0] * SHAPES[site][1]
        assert row["selected"] == report.selection.selected(site)
        assert row["shortfall"] == row["requested"] - row["selected"]
        assert row["threshold"] == report.selection.threshold[site]
    frame = tables.silent(list(report.counts))
    assert frame.columns == ["model", "site", "layer", "silent", "neurons"]
    assert frame["silent"].min() >= 3  # type: ignore[operator]
    for row in frame.iter_rows(named=True):
        total = torch.stack([one.active[row["site"]] for one in report.counts]).sum((0, 1, 3))
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
        *("model", "module", "fdr", "null_mean", "selected", "overlap_mean", "overlap_min", "overlap_max")
    ]
    assert frame["module"].to_list() == ["Q-Former", "qformer.query.act", "qformer.text.act", "LLM", "All"]
    assert frame.row(0)[2:] == (0.2, 8.0, 40, 0.5, 0.5, 0.5)
    assert frame.row(1)[2:] == (0.2, 2.0, 10, 0.375, 0.25, 0.5)
    assert frame["fdr"].is_nan().to_list() == [False, False, False, True, False]
    assert tables.shown(frame["fdr"][3]) == "–"


def test_wide_puts_each_domain_in_its_column(report: Report) -> None:
    frame = tables.wide(tables.neurons_per_domain(report.selection), "neurons", DOMAINS)
    assert frame.columns == ["model", "module", *map(tables.domain_name, DOMAINS)]
    for row in frame.iter_rows(named=True):
        for domain in DOMAINS:
            masks = report.selection.neurons(domain, row["module"]).values()
            assert row[tables.domain_name(domain)] == sum(int(mask.sum()) for mask in masks)


def test_ablation_takes_exactly_its_columns() -> None:
    frame = tables.ablation(ablation_rows())
    assert frame.columns == list(tables.ABLATION)
    assert frame.to_dicts() == ablation_rows()
    row = ablation_rows()[0]
    row["score"] = row.pop("accuracy")
    with pytest.raises(ValueError, match=r"ablation row 1 lacks \['accuracy'\] and has unknown \['score'\]; give"):
        tables.ablation([ablation_rows()[0], row])


def test_csv_files_equal_the_frames(report: Report, html: str, tmp_path: Path) -> None:
    page.write(report, tmp_path)
    expected = {
        "neurons_per_domain": tables.neurons_per_domain(report.selection),
        "layer_distribution": tables.layer_distribution(report.selection),
        "silent": tables.silent(list(report.counts)),
        "control": tables.control(report.discovery, report.overlap),  # type: ignore[arg-type]
        "ablation": report.ablation,
        "selection": tables.selection_summary(report.selection),
    }
    assert report.wider is not None
    expected["neurons_per_domain_wider"] = tables.neurons_per_domain(report.wider)
    for name, frame in expected.items():
        assert frame is not None
        assert pl.read_csv(tmp_path / "tables" / f"{name}.csv", schema=frame.schema).equals(frame), name
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        *("ablation.png", "layer_distribution.png", "silent.png")
    }
    assert (tmp_path / "index.html").read_text() == html


def test_page_contains_each_number(report: Report, html: str) -> None:
    cells = Cells(html)
    rows = {tuple(row) for table in cells.tables for row in table}

    def on_page(frame: pl.DataFrame, decimals: int | None = None) -> None:
        for row in frame.drop("model", strict=False).iter_rows(named=True):
            assert tuple(tables.shown(value, name, decimals) for name, value in row.items()) in rows, row

    for selection in (report.selection, report.wider):
        assert selection is not None
        on_page(tables.wide(tables.neurons_per_domain(selection), "neurons", DOMAINS))
    branches = tables.wide(tables.neurons_per_domain(report.selection, by="site"), "neurons", DOMAINS)
    on_page(branches.filter(pl.col("module") == "Q-Former").drop("module"))
    on_page(tables.wide(tables.layer_distribution(report.selection), "neurons", DOMAINS))
    on_page(tables.selection_summary(report.selection))
    on_page(tables.silent(list(report.counts)))
    on_page(tables.control(report.discovery, report.overlap))  # type: ignore[arg-type]
    assert report.ablation is not None
    on_page(report.ablation)
    main = report.ablation.filter(pl.col("condition").is_in(["none", "domain"])).drop("condition")
    on_page(tables.wide(main, "accuracy", DOMAINS), decimals=1)
    for number, domain in enumerate(DOMAINS):
        tokens = (f"{int(values[number]):,}" for values in report.selection.tokens.values())
        assert (tables.domain_name(domain), f"{domain} corpus", f"{1230 + number:,}", *tokens) in rows


def test_page_is_self_contained_and_escaped(html: str) -> None:
    cells = Cells(html)
    assert len(cells.loads) == 6
    assert all(load.startswith("data:image/png;base64,") for load in cells.loads)
    assert not cells.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in html
    assert "@import" not in html
    assert "A &lt;title&gt;" in html
    assert not cells.tags & {"m", "image"}
    assert "<image>\\n{question}" in [
        cell.replace("\n", "\\n") for table in cells.tables for row in table for cell in row
    ]


@pytest.mark.usefixtures("_no_images")
def test_page_says_what_was_not_run(report: Report) -> None:
    assert "<li>The 13B model was not run.</li>" in page.render(report)
    assert report.missing() == ("The 13B model was not run.",)
    bare = Report("t", report.selection)
    assert len(bare.missing()) == 4
    html = page.render(bare)
    for text in bare.missing():
        assert f"<li>{text}</li>" in html
    assert "Is it more than chance?" not in html
    assert "Nothing that this page has a place for was left out." in page.render(replace(report, not_run=()))


@pytest.mark.usefixtures("_no_images")
def test_other_experiments_add_sections(report: Report) -> None:
    frame = pl.DataFrame({"layer": [0, 1], "entropy": [8.25, 2.5]})
    extra = Section("Logit lens", ("Entropy falls.",), (page.Grid("lens", "Mean entropy, nats", frame),))
    html = page.render(replace(report, sections=(extra,)))
    assert ["1", "2.500"] in [row for table in Cells(html).tables for row in table]
    assert "Logit lens</h2>" in html


def test_report_refuses_parts_that_do_not_belong(report: Report) -> None:
    with pytest.raises(ValueError, match="the report has one control of two; give both discovery and overlap"):
        replace(report, overlap=None)
    with pytest.raises(ValueError, match="the report is of <m>, but holds results of other"):
        replace(report, counts=(replace(report.counts[0], model="other"),))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_deterministic_whatever_the_settings(report: Report, theme: figures.Theme) -> None:
    assert report.ablation is not None
    cases = (
        (figures.layer_figure, tables.layer_distribution(report.selection)),
        (figures.silent_figure, tables.silent(list(report.counts))),
        (figures.ablation_figure, report.ablation),
    )
    for draw, frame in cases:
        first = figures.png(draw(frame, theme))
        with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "savefig.dpi": 20}):
            assert figures.png(draw(frame, theme)) == first
        assert not re.search(rb"tEXt|tIME|matplotlib", first)


def test_layer_figure_draws_the_sums_of_each_module_in_the_domains_colours(report: Report) -> None:
    frame = tables.layer_distribution(report.selection)
    panels = figures.layer_figure(frame).axes
    assert [panel.get_title(loc="left") for panel in panels] == MODULES
    for panel, module in zip(panels, MODULES, strict=True):
        for line, domain in zip(panel.lines, DOMAINS, strict=True):
            sums = sum(
                report.selection.neurons(domain, module)[site].sum(1)
                for site in report.selection.neurons(domain, module)
            )
            assert list(line.get_ydata()) == torch.as_tensor(sums).tolist()
            assert line.get_color() == figures.DOMAIN_COLOURS[domain]
            assert max(line.get_ydata()) <= panel.get_ylim()[1]


def test_silent_figure_stacks_to_one(report: Report) -> None:
    frame = tables.silent(list(report.counts))
    for panel, site in zip(figures.silent_figure(frame).axes, frame["site"].unique(maintain_order=True), strict=True):
        layers = SHAPES[site][0]
        heights = [bar.get_height() for bar in panel.patches]
        here = frame.filter(pl.col("site") == site)
        assert heights[:layers] == pytest.approx((here["silent"] / here["neurons"]).to_list())
        assert [a + b for a, b in zip(heights[:layers], heights[layers:], strict=True)] == pytest.approx([1] * layers)
        assert [bar.get_y() for bar in panel.patches] == pytest.approx([0] * layers + heights[:layers])


def test_ablation_figure_shows_every_condition_but_none() -> None:
    panels = figures.ablation_figure(tables.ablation(ablation_rows())).axes
    assert [panel.get_title(loc="left") for panel in panels] == [*MODULES, "All"]
    points = [float(line.get_xdata()[0]) for panel in panels for line in panel.lines if len(line.get_xdata()) == 1]
    expected = [row["difference"] for row in ablation_rows() if row["condition"] != "none"]
    assert sorted(points) == pytest.approx(sorted(expected))


def test_terminal_table(report: Report) -> None:
    console = Console(width=160, file=StringIO(), record=True)
    console.print(tables.terminal_table(tables.selection_summary(report.selection), "Selection"))
    text = console.export_text()
    assert "Selection, <m>" in text
    for site in SHAPES:
        assert f"{report.selection.threshold[site]:.3f}" in text


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
        figures.ablation_figure(tables.ablation(none))
