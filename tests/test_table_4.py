"""Table 4 from artifacts made by hand: definitions, an image a domain, this run's sizes and the paper's."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path

import numpy
import polars as pl
import pytest
import torch
from PIL import Image
from test_positions import trace

from mmneuron_lens.artifacts.answers import Answer
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.paper.corpora import DEFINITIONS, table_4
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.report.page import Page, render, write

SITE = "llm.mlp.act"


def counts_of(domain: str, samples: int, tokens: int) -> Counts:
    active, seen = torch.zeros(16, 1, 1, 3, dtype=torch.int64), torch.zeros(16, 1, dtype=torch.int64)
    seen[3] = tokens
    told = {"corpus": {"name": "mine", "questions": samples}}
    return Counts("m", domain, {SITE: active}, {SITE: seen}, {SITE: ("image",)}, samples, told)


def seen_of(domain: str, colour: int) -> LensTrace:
    made = trace(domain)
    object.__setattr__(made, "pictures", (torch.full((4, 8, 3), colour, dtype=torch.uint8),))
    return made


class Made(ModelRun):
    """A run of two domains of the paper and one of its own, of which the first two have an image."""

    counts = (counts_of("medical", 7, 90), counts_of("common", 5, 60), counts_of("scans", 3, 30))  # type: ignore[assignment]
    traces = (seen_of("medical", 200), seen_of("common", 50), trace("scans"))  # type: ignore[assignment]
    answers = tuple(Answer("m", "None", "none", "", "medical", name, "?", ("a",), "a") for name in "xyzx")  # type: ignore[assignment]

    def sources(self, *kinds, domain=None):
        return ()


@pytest.fixture
def section():
    return table_4([Made(Path(), "m")])


def test_sizes_of_the_run_stand_beside_the_papers(section):
    rows = {row["domain"]: row for row in section.grids[0].frame.to_dicts()}
    assert rows["Medical"] == {
        "domain": "Medical", "definition": DEFINITIONS["medical"], "corpus": "mine", "identifying questions": 7,
        "answered questions": 3, "corpus of the paper": "PMC-VQA", "samples of the paper": 15000,
    }  # fmt: skip
    assert rows["Common Scenes"]["samples of the paper"] == 21000
    assert (rows["scans"]["definition"], rows["scans"]["samples of the paper"]) == (None, None)
    assert section.grids[1].frame.to_dicts() == [{"model": "m", "Medical": 90, "Common Scenes": 60, "scans": 30}]
    assert DEFINITIONS.keys() == set(DOMAINS)


def test_the_page_shows_an_image_of_each_domain(section, tmp_path):
    html = render(Page("t", "l", (), (section,)))
    cells = re.findall(r'<td class="example">(.*?)</td>', html)
    assert len(cells) == 3
    for cell, colour in zip(cells, (200, 50), strict=False):
        data = re.search(r'src="data:image/png;base64,([^"]+)"', cell)
        assert data is not None
        with Image.open(BytesIO(base64.b64decode(data[1]))) as picture:
            assert numpy.array(picture).tolist() == numpy.full((4, 8, 3), colour).tolist()
    assert cells[2] == "–"
    assert html.count('<th scope="col">example</th>') == 1
    # Files hold the table without pictures.
    write(Page("t", "l", (), (section,)), tmp_path)
    assert pl.read_csv(tmp_path / "tables" / "corpora.csv").equals(section.grids[0].frame)
    assert "example" not in (tmp_path / "tables" / "corpora.tex").read_text()


def test_without_an_image_there_is_no_column_for_it():
    class Unread(Made):
        traces = ()  # type: ignore[assignment]

    section = table_4([Unread(Path(), "m")])
    assert section.grids[0].examples == ()
    assert 'class="example"' not in render(Page("t", "l", (), (section,)))
    assert "read layer by layer" not in section.grids[0].caption
