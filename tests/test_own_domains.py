"""Domains of one's own, as many as there are and whatever they are called, through commands, tables and pages."""

from __future__ import annotations

import re

import polars as pl
import pytest
import torch
from drawn_corpus import QUESTIONS, row, write_images, write_rows
from test_cli import MODEL, mmneuron

from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.report import tables
from mmneuron_lens.report.terminal import terminal_tables

TWO = ("photos", "scans")
SEVEN = ("model", "Common Scenes", "common", "2023", "007", "[/red] & <b>x/y</b>", "Photos of a long name")
"""Names that are also those of columns, of headings, of numbers, of markup."""


def write_domains(folder, domains, images=3):
    """Noise images; every domain's questions of its own."""
    rows = []
    for number, domain in enumerate(domains):
        write_images(folder, f"d{number}-", images, number)
        for place in range(images):
            image = f"images/d{number}-{place}.png"
            rows += [row(domain, 0, question, image=image) for question in QUESTIONS[:2]]
    return write_rows(folder, rows)


@pytest.fixture(scope="module", params=[TWO, SEVEN], ids=["two", "seven"])
def run(request, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    corpus, out = write_domains(folder / "mine", request.param), folder / "run"
    counted = mmneuron("count", *MODEL, "--corpus", corpus, "--out", out)
    selected = mmneuron("select", out, "--fraction", "0.05")
    ablated = mmneuron(
        "ablate", out, *MODEL, "--corpus", corpus, "--images", 1, "--random-draws", 1, "--max-new-tokens", 1, "--cross"
    )
    return request.param, out, counted, selected, ablated


def test_every_domain_of_the_file_is_counted_selected_and_asked(run):
    domains, out, *results = run
    assert [result.exit_code for result in results] == [0, 0, 0], results[-1].stderr
    assert not any("skipped" in result.stderr for result in results)
    counts = [Counts.load(file) for file in (out / "counts" / "embedded+instructblip").iterdir()]
    assert {one.domain: one.samples for one in counts} == dict.fromkeys(domains, 6)
    selection = Selection.load(out / "selection" / "embedded+instructblip.safetensors")
    assert sorted(selection.domains) == sorted(domains)
    ablation = pl.read_csv(out / "tables" / "ablation.csv", schema_overrides={"domain": pl.String})
    assert set(ablation["domain"]) == set(domains)


def test_the_terminal_and_the_page_show_each_domain_under_its_own_name(run):
    domains, out, *_, ablated = run
    selection = Selection.load(out / "selection" / "embedded+instructblip.safetensors")
    first = next(iter(terminal_tables(out / "index.html")))
    headings = [str(column.header) for column in first.columns]
    assert len(set(headings)) == len(headings) == 1 + len(domains)
    shown = {"model": "model (domain)", "common": "Common Scenes"}
    if domains == SEVEN:
        shown["Common Scenes"] = "Common Scenes (domain)"
    for domain in domains:
        column = first.columns[headings.index(shown.get(domain, domain))]
        own = {module: selection.neurons(domain, module) for module in ("Vision Encoder", "Q-Former", "LLM")}
        assert list(map(str, column.cells)) == [
            str(sum(int(one.sum()) for one in masks.values())) for masks in own.values()
        ]
    html = (out / "index.html").read_text()
    assert "<b>x" not in html
    if domains == SEVEN:
        assert "&lt;b&gt;x/y&lt;/b&gt;" in html
        assert all(name in ablated.stdout for name in ("2023", "007", "[/red]"))


def test_some_domains_when_asked_and_a_name_that_is_not_there(run, tmp_path):
    domains, out, *_ = run
    corpus = out.parent / "mine"
    wanted = [word for domain in domains[:2] for word in ("--domain", domain)]
    result = mmneuron("count", *MODEL, "--corpus", corpus, "--out", tmp_path, "--images", 1, *wanted)
    assert (result.exit_code, "skipped" in result.stderr) == (0, False)
    assert len(list((tmp_path / "counts" / "embedded+instructblip").iterdir())) == 2
    result = mmneuron("count", *MODEL, "--corpus", corpus, "--out", tmp_path, "--domain", "photo")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "mine has no good row of photo; it has " in line
    assert all(domain in line for domain in domains)


def test_one_domain_alone_makes_no_selection(tmp_path):
    corpus = write_domains(tmp_path / "mine", ("photos",), 1)
    assert mmneuron("count", *MODEL, "--corpus", corpus, "--out", tmp_path / "run").exit_code == 0
    result = mmneuron("select", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "mmneuron: domains ('photos',) do not make a selection; give the counts of two or more, each once."
    )


def test_names_that_look_alike_are_said_once_the_count_ends(tmp_path):
    corpus = write_domains(tmp_path / "mine", ("photos", "Photos "), 1)
    result = mmneuron("count", *MODEL, "--corpus", corpus, "--out", tmp_path / "run")
    assert "domains 'photos', 'Photos ' differ in capitals or spaces alone, and are 2 domains." in result.stderr
    assert "rows skipped" not in result.stderr
    assert not (tmp_path / "run" / "problems.txt").exists()
    assert len(list((tmp_path / "run" / "counts" / "embedded+instructblip").iterdir())) == 2


def test_a_domain_that_the_selection_does_not_have_is_said(run, tmp_path):
    domains, out, *_ = run
    corpus = write_domains(tmp_path / "mine", (domains[0], "elsewhere"), 1)
    asked = ["--random-draws", 0, "--max-new-tokens", 1, "--replace"]
    result = mmneuron("ablate", out, *MODEL, "--corpus", corpus, *asked)
    assert result.exit_code == 0
    assert re.search(
        r"^elsewhere: not among the selection's domains \(.*\), so not asked$", result.stderr, re.MULTILINE
    )
    result = mmneuron("ablate", out, *MODEL, "--corpus", corpus, "--domain", "elsewhere", *asked)
    assert result.exit_code == 1
    assert "mine has questions of elsewhere, and the selection is of " in result.stderr


def test_a_column_keeps_its_name_beside_a_domain_of_that_name():
    frame = pl.DataFrame({"model": ["m"] * 3, "domain": ["model", "common", "Common Scenes"], "neurons": [1, 2, 3]})
    wide = tables.wide(frame, "neurons", ["common", "Common Scenes", "model"])
    assert wide.to_dicts() == [{"model": "m", "Common Scenes": 2, "Common Scenes (domain)": 3, "model (domain)": 1}]
