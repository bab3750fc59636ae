"""Positions of a prompt by name, against places counted by hand; what Figures 6 and 10 to 13 show of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus

from mmneuron_lens import load_corpus, read_layers
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.positions import PAPERS, check_position, place_of
from mmneuron_lens.paper.layers import Cases, figure_6, figures_10_to_13
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.runs.pipeline import run_model
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.questions import corpus_questions
from mmneuron_lens.runs.store import Store

KINDS = ("text", "image", "image", "image", "text", "text")


@pytest.mark.parametrize(
    ("position", "place"),
    [
        (0, 0), (-1, 5), ("3", 3), ("-2", 4), ("last", 5), ("image 1", 1), ("image 3", 3), ("image -1", 3),
        ("text 1", 0), ("text 2", 4), ("text -1", 5), ("text -3", 0), ("text last", 5),
    ],
)  # fmt: skip
def test_places_by_hand(position, place):
    assert place_of(position, KINDS) == place


@pytest.mark.parametrize("position", ["", "image", "image 0", "picture 1", "image one", "1.5", "image 1 2", "²", "--1"])
def test_what_is_no_position_is_refused_with_examples(position):
    with pytest.raises(ValueError, match=r"is no position; give a column \(17, -1\), last, image 8, text -5"):
        check_position(position)
    with pytest.raises(ValueError, match="is no position"):
        Plan(lens_at=("paper", position))


@pytest.mark.parametrize(("position", "where"), [(6, "6 tokens"), ("image 4", "3 image tokens"), ("text -4", "3 text")])
def test_a_position_that_is_not_there_says_how_many_are(position, where):
    with pytest.raises(IndexError, match=rf"are not in this prompt of {where}"):
        place_of(position, KINDS)


def test_the_papers_positions():
    """Captions of Figures 6 and 10 to 13: which image token, and which text token from the end."""
    assert PAPERS == {
        "remote_sensing": ("image 2", "text -1"),
        "medical": ("image 8", "text -1"),
        "document": ("image 377", "text -5"),
        "common": ("image 49", "text -9"),
        "auto_driving": ("image 37", "text -18"),
    }


def test_a_trace_holds_the_positions_that_were_asked_for(tmp_path):
    corpus = load_corpus(write_corpus(tmp_path, images=1))
    lens, sample = tiny_lens("llava_next"), corpus.by_domain()["medical"][0]
    whole = read_layers(lens, sample)
    images = [place for place, kind in enumerate(whole.kinds) if kind == "image"]
    some = read_layers(lens, sample, positions=["image 8", "text -1", 2])
    assert torch.equal(some.tokens, whole.tokens[:, [2, images[7], len(whole.kinds) - 1]])
    paper = read_layers(lens, sample, positions="paper")
    assert torch.equal(paper.tokens, whole.tokens[:, [images[7], len(whole.kinds) - 1]])
    assert [name for name, *_ in paper.rows(0, even=True)] == ["layer 2"]
    with pytest.raises(IndexError, match=r"'image 999'.* image tokens"):
        read_layers(lens, sample, positions=["image 999"])


def trace(domain: str) -> LensTrace:
    """Two tokens of text around ten of an image, four layers; a token's number is 100 * layer + position."""
    kinds = ("text", *["image"] * 10, "text")
    tokens = (100 * torch.arange(5)[:, None] + torch.arange(12))[..., None].expand(-1, -1, 5)
    return LensTrace(
        model="m", domain=domain, id="1", question="q", prompt="", expected=("no",),
        layers=("embedding", "1", "2", "3", "4"), labels=tuple(f"t{place}" for place in range(12)), kinds=kinds,
        tokens=tokens, probabilities=torch.full((5, 12, 5), 0.2), entropy=torch.zeros(5, 12),
        boxes=torch.full((12, 5), float("nan")), pictures=(), words={str(n): f"w{n}" for n in range(512)},
    )  # fmt: skip


class Traced(ModelRun):
    """A run that holds three traces alone."""

    traces = (trace("remote_sensing"), trace("medical"), trace("document"))  # type: ignore[assignment]

    def sources(self, *kinds, domain=None):
        return ()


@pytest.fixture
def runs() -> list[ModelRun]:
    return [Traced(Path(), "m")]


def shown(html: str) -> list[str]:
    """The words of the heatmaps, row by row, each once."""
    tables = re.findall(r'<table class="heat">(.*?)</table>', html)
    rows = [row for one in tables for row in re.findall(r'<th scope="row">(.*?)</th><td[^>]*>(.*?)</td>', one)]
    return [f"{name} {word}" for name, word in rows]


def test_figures_show_the_second_image_token_and_the_last_word_unless_told(runs):
    html = "".join(figure_6(runs).after)
    layers = ("embedding", "layer 1", "layer 2", "layer 3", "layer 4")
    assert shown(html) == [f"{name} w{100 * row + place}" for place in (2, 11) for row, name in enumerate(layers)]


def test_figures_show_the_papers_positions_in_even_layers_and_say_what_is_not_there(runs):
    cases = Cases(("paper",), even=True)
    assert shown("".join(figure_6(runs, cases).after)) == [
        f"layer {layer} w{100 * layer + place}" for place in (2, 11) for layer in (2, 4)
    ]
    html = "".join(figures_10_to_13(runs, cases).after)
    # The eighth image token of medicine; of the document's two neither is in a prompt so short.
    assert shown(html) == [f"layer {layer} w{100 * layer + place}" for place in (8, 11) for layer in (2, 4)]
    assert "Not shown: positions [&#39;image 377&#39;] are not in this prompt of 10 image tokens." in html
    assert "Not shown: positions [&#39;text -5&#39;] are not in this prompt of 2 text tokens." in html


def test_figures_show_what_is_asked_for(runs):
    html = "".join(figure_6(runs, Cases(("image -1", "0"))).after)
    assert {one.split()[-1] for one in shown(html)} == {
        f"w{100 * row + place}" for place in (10, 0) for row in range(5)
    }


def test_the_questions_of_the_figures_can_be_named(tmp_path):
    corpus = load_corpus(write_corpus(tmp_path / "corpus", images=6))
    plan = Plan(
        identification_images=4, evaluation_images=2, deviation_questions=1, random_draws=0, ablation_draws=0,
        permutations=1, entropy_images=1, embedding_images=2, fraction=0.3, percentile=0.6, cross=False,
        generation={"max_new_tokens": 1, "do_sample": False, "num_beams": 1}, lens_questions=("line-11",),
    )  # fmt: skip
    asked, lens = corpus_questions(corpus, plan), tiny_lens("llava_next")
    names = {domain: [one.id for one in some] for domain, some in asked.evaluation.items()}
    assert names["common"].index("line-11") > 0
    run_model(lens, asked, plan, Store(tmp_path / "run"))
    found = {one.domain: one.id for one in ModelRun(tmp_path / "run", lens.name).traces}
    assert found == {"common": "line-11", "medical": names["medical"][0]}
    with pytest.raises(KeyError, match="no question 'line-99' is answered in this run; give an id of its questions"):
        run_model(lens, asked, replace(plan, lens_questions=("line-99",)), Store(tmp_path / "other"))
    assert not (tmp_path / "other" / "counts").exists()
