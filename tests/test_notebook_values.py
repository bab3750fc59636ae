"""What Jupyter shows of our values: short, in the notebook's colours, with what to call next."""

from __future__ import annotations

import re
from types import SimpleNamespace

import polars as pl
import pytest
from IPython.core.formatters import DisplayFormatter

import mmneuron_lens as mm
from interventions import Graph
from mmneuron_lens.artifacts.digits import interval
from mmneuron_lens.artifacts.table_html import STYLE, value_html
from mmneuron_lens.report import notebook

MARKS = "Ġ▁Ċ"


@pytest.fixture(scope="module")
def values():
    lens = mm.Lens("embedded/llava-next")
    corpus = mm.load_corpus("drawn", images=8, questions_per_image=1)
    found = mm.identify(lens, corpus)
    few = corpus.some(images=1)
    batch = lens.encode([corpus[0].images[0], None], [corpus[0].question, "why?"])
    trace = mm.read_layers(lens, corpus[0])
    told = mm.compare(lens, few, counts=found.counts, methods=("dape",), fractions=(0.01,), draws=1, others=())
    return {
        **{"lens": lens, "corpus": corpus, "batch": batch, "counts": found.counts[0], "selection": found.selection},
        **{"identified": found, "effect_sizes": found.controls.effects, "lens_trace": trace},
        "result": lens.generate(mm.count_active, batch, max_new_tokens=2),
        "entropies": mm.read_entropy(lens, few)["medical"],
        "deviations": mm.deviate(lens, found.selection, few),
        "ablation": mm.ablate(lens, found.selection, few, max_new_tokens=2),
        "comparison_table": told,
    }


@pytest.fixture(scope="module")
def shell():
    made = SimpleNamespace(display_formatter=DisplayFormatter())
    notebook.register(made)
    notebook.register(made)
    return made


def html_of(shell, value) -> str:
    found, _ = shell.display_formatter.format(value, include=["text/html"])
    return found["text/html"]


def test_every_value_is_short_and_says_what_to_call_next(values, shell):
    for name, value in values.items():
        html = html_of(shell, value)
        assert html == notebook.value_html(name, value), name
        assert re.search("next: <code>.+?</code>", html), name
        text = re.sub("<[^>]+>", " ", html.replace(STYLE, ""))
        assert len(text) < 3000, name
        assert not any(mark in text for mark in MARKS), name
        assert not re.search(r"-0\.0|\d\.\d{7,}|e-\d\d", text), (name, text)
        assert not re.search(r"(?<!-)color:\s*#|background:\s*#", html) or name == "lens_trace", name
        assert len(repr(value)) < 1500, name


def test_every_kind_of_value_is_one_that_there_is(values):
    from importlib import import_module

    from mmneuron_lens.report import notebook_values

    for name, (module, kind) in notebook.SHOWN.items():
        assert isinstance(getattr(import_module(module), kind), type)
        assert callable(getattr(notebook_values, name))


def test_numbers_are_those_of_the_frames(values, shell):
    row = values["deviations"].to_frame().row(0, named=True)
    assert f"<td>{interval(row['deviation'], row['low'], row['high'])}</td>" in html_of(shell, values["deviations"])
    selection = values["selection"]
    counted = sum(int(mask.sum()) for mask in selection.neurons("medical", "LLM").values())
    html = html_of(shell, selection)
    line = re.search(r"<tr><td>LLM</td>(.*?)</tr>", html)
    head = re.findall("<th[^>]*>(.*?)</th>", html)
    assert line
    assert re.findall("<td[^>]*>(.*?)</td>", line[1])[head.index("Medical") - 1] == str(counted)
    assert "why ?" not in html_of(shell, values["lens"])
    assert "<pad>" not in html_of(shell, values["batch"])
    assert "2 answers" in html_of(shell, values["result"])


def test_names_from_outside_stay_text():
    html = value_html("<b>", pl.DataFrame({"<i>": ["<script>"]}), "<u>", ("<code>",))
    assert not re.search("<(b|i|u|script)>(?!<)", html.replace("<b>&lt;b&gt;</b>", ""))
    assert "&lt;script&gt;" in html


def test_a_long_table_says_how_many_rows_there_are():
    html = value_html("Rows", pl.DataFrame({"layer": range(1234), "size": range(1234)}), most=3)
    assert html.count("<tr>") == 4
    assert "3 of 1,234 rows" in html


def test_places_have_no_commas():
    html = value_html("Rows", pl.DataFrame({"neuron": [12345], "tokens": [12345]}))
    assert re.findall(r"<td[^>]*>(.*?)</td>", html) == ["12345", "12,345"]


def test_a_graph_is_shown_too(values):
    assert isinstance(values["selection"].off("medical"), Graph)
