"""What a notebook's cell shows beside tables: the lens to point at, and no bar or warning that is left over."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape

import pytest
import torch
from drawn_corpus import write_corpus
from matplotlib import pyplot
from polars.testing import assert_frame_equal
from transformers.utils import logging

import mmneuron_lens as mm
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.report import hover_frame as frames
from mmneuron_lens.report.looks import DOMAIN_COLOURS
from mmneuron_lens.report.notebook_values import lens_trace
from mmneuron_lens.runs.examples import examples_stage
from mmneuron_lens.runs.store import Store


@pytest.fixture(scope="module")
def lens() -> mm.Lens:
    return mm.Lens("embedded/llava-next")


@pytest.fixture
def corpus(tmp_path) -> mm.Corpus:
    return mm.load_corpus(write_corpus(tmp_path / "corpus", images=3)).only(["common", "medical"])


def test_a_trace_can_be_pointed_at_in_a_frame_of_its_own(lens, corpus):
    trace = mm.read_layers(lens, corpus[0], top_k=2)
    shown = lens_trace(trace)
    (frame,) = re.findall(r"<iframe ([^>]*)>", shown)
    # Its script reaches neither the notebook's page nor its origin.
    assert 'sandbox="allow-scripts"' in frame
    page = unescape(re.findall(r'srcdoc="([^"]*)"', frame)[0])
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    held = json.loads(data)
    assert {name: held[name] for name in ("labels", "tokens", "probabilities")} == {
        name: trace.document()[name] for name in ("labels", "tokens", "probabilities")
    }
    assert len(held["pictures"]) == len(trace.pictures)
    # Where the frame is taken out, two positions stay.
    assert shown[shown.index("</iframe>") :].count("<table") == 2


def test_a_trace_of_too_many_words_says_how_to_read_fewer(lens, corpus, monkeypatch):
    trace = mm.read_layers(lens, corpus[0], top_k=2)
    monkeypatch.setattr(frames, "MOST", trace.tokens.numel() - 1)
    shown = lens_trace(trace)
    assert "<iframe" not in shown
    assert f"{trace.tokens.numel():,} words at {len(trace.labels):,} positions" in shown
    assert "positions=" in shown
    assert shown.count("<table") == 2


def test_identify_keeps_what_its_neurons_answer_to(lens, corpus, tmp_path):
    found = mm.identify(lens, corpus, top=2, out=tmp_path / "run")
    expected = examples_stage(lens, found.selection, corpus.by_domain(), Store(None), k=2, corpus=corpus.name)
    (file,) = (tmp_path / "run" / "examples").glob("*.safetensors")
    kept = NeuronExamples.load(file)
    here, there = (one.to_frame().sort("site", "layer", "neuron", "rank") for one in (kept, expected))
    assert_frame_equal(here, there)
    first = mm.load_run(tmp_path / "run").neurons.row(0, named=True)
    card = mm.neuron(tmp_path / "run", first["site"], first["layer"], first["neuron"])
    own = kept.to_frame().filter(site=first["site"], layer=first["layer"], neuron=first["neuron"])
    assert card.examples()["activation"].to_list() == own["activation"].to_list()
    assert 1 <= len(own) <= 2
    plain = mm.identify(lens, corpus)
    assert all(torch.equal(plain.selection.masks[site], mask) for site, mask in found.selection.masks.items())


def test_examples_without_a_folder_are_refused(lens, corpus):
    with pytest.raises(mm.MMNeuronError, match="top is 2, and examples are kept in a run's folder; give out= too"):
        mm.identify(lens, corpus, top=2)


def test_a_small_model_is_loaded_without_a_progress_bar(capsys):
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        mm.Lens("embedded/llava-next")
        assert capsys.readouterr().err == ""
        # Of others a bar is shown as before.
        assert logging.is_progress_bar_enabled()
    finally:
        if not before:
            logging.disable_progress_bar()


def test_a_notebook_without_widgets_is_not_warned_of():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell; shell = InteractiveShell.instance()\n"
        "import mmneuron_lens, warnings\n"
        "warnings.warn('IProgress not found. Please update jupyter'); warnings.warn('other')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "IProgress" not in said.replace(code, "")
    assert "UserWarning: other" in said


def test_figures_have_the_colours_of_the_domains():
    with pyplot.style.context("mmneuron_lens.figures"):
        cycle = [one["color"] for one in pyplot.rcParams["axes.prop_cycle"]]
    assert cycle[:5] == [*DOMAIN_COLOURS.values()]
