"""The eight experiments on a server that has nothing of these packages: the same lines, the same numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from eight_experiments import (
    attention_knock_out,
    attribution_to_positions,
    encoded,
    patch_heat_map,
    patching,
    probe,
    steering,
    top_images,
    tuned_beside_logit,
)
from equality import assert_equal
from strict_client import NO_ENVIRONMENT, URL, StrictServer, environment_is_there

import mmneuron_lens
from interventions import logit_difference
from mmneuron_lens import Lens, load_corpus
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.experiments.compare import compare
from mmneuron_lens.experiments.fit_tuned import fit_tuned_lens
from mmneuron_lens.experiments.token_directions import token_id
from mmneuron_lens.neurons.compared import chosen_sets, with_draws, with_strengths

pytestmark = pytest.mark.skipif(not environment_is_there(), reason=NO_ENVIRONMENT)

NAMES = ("llava-next", "idefics3")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = Path(mmneuron_lens.__file__).parent / "embedded"
    made = StrictServer([folder / name for name in NAMES], tmp_path_factory.mktemp("strict"))
    yield made
    made.close()


@pytest.fixture(params=NAMES)
def study(request, server, monkeypatch) -> SimpleNamespace:
    """Questions, and two lenses on the same weights: here, and one that says `remote=` once and has none."""
    server.attach(monkeypatch)
    folder = server.folders[NAMES.index(request.param)]
    here, there = Lens(folder), Lens(folder, remote=URL)
    assert there.device.type == "meta"
    corpus = load_corpus("drawn", images=12)
    asked = [one for one in corpus if one.question == "Is a water area present?"]
    wet, dry = ([one for one in asked if one.answers == (answer,)][:2] for answer in ("yes", "no"))
    ids = [token_id(there, word) for word in (" yes", " no")]
    right, wrong = (torch.full((2,), one) for one in ids)
    target = logit_difference.bind(right=right, wrong=wrong)
    return SimpleNamespace(here=here, there=there, corpus=corpus, wet=wet, dry=dry, target=target, server=server)


def assert_same(study, experiment: Any, *given: Any, **settings: Any) -> None:
    """The same here and there, and it was there that it ran."""
    here = experiment(study.here, *given, **settings)
    before = len(study.server.sent)
    there = experiment(study.there, *given, **settings)
    assert len(study.server.sent) > before
    assert_equal(here, there)


def test_what_reads_writes_and_patches(study):
    wet, dry = encoded(study.there, study.wet), encoded(study.there, study.dry)
    assert_same(study, patch_heat_map, wet, dry, layer=0, row=1)
    assert_same(study, steering, wet, dry, study.target, [0.0, 1.0])
    assert_same(study, attention_knock_out, wet, study.target, range(4), "last", "question", window=2)
    assert_same(study, patching, wet, dry, study.target, range(4), ["image", -1, (-3, -2)])


def test_what_differentiates(study):
    wet, dry = encoded(study.there, study.wet), encoded(study.there, study.dry)
    assert_same(study, attribution_to_positions, wet, dry, study.target, steps=3)


def test_what_goes_over_many_samples(study):
    assert_same(study, top_images, study.corpus[::35], 1, 30, 3, rows=5)
    samples = [one for some in study.corpus.by_domain().values() for one in some[::28]]
    batches = [encoded(study.there, samples[start : start + 8]) for start in range(0, len(samples), 8)]
    labels = [one.domain for one in samples]
    for position in (-1, "image"):
        assert_same(study, probe, batches, labels, position)
    fitted = fit_tuned_lens(study.here, batches[:1], held_out=batches[1], steps=2)
    assert_same(study, tuned_beside_logit, fitted, batches[1], -1)


def test_what_compares_neurons(study):
    """Changes, deviations and generated answers of the comparison, all of which are made where the model is."""
    by_domain = {domain: some[:2] for domain, some in study.corpus.by_domain().items() if domain in DOMAINS[:2]}
    generator = torch.Generator().manual_seed(0)
    width = study.here.architecture.place("llm.mlp.act").sizes["neuron"]
    scores = {"drawn": {"llm.mlp.act": torch.rand(4, width, 2, dtype=torch.float64, generator=generator)}}
    sets = with_strengths(with_draws(chosen_sets(scores, DOMAINS[:2], (0.1,)), 1), (1.0,), (0.1,))

    def found(lens: Lens) -> list[Any]:
        settings: dict[str, Any] = {"methods": ("drawn",), "domains": DOMAINS[:2], "accuracy": (0.1,)}
        one = compare(lens, sets, by_domain, **settings, max_new_tokens=2)
        values = (getattr(one, name).nan_to_num(-9) for name in ("change", "deviation", "right"))
        return [one.before, *values]

    assert_same(study, found)
