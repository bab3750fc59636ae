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
from mmneuron_lens.experiments.fit_tuned import fit_tuned_lens
from mmneuron_lens.experiments.token_directions import token_id

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
