"""Examples read on a server that has nothing of these packages: the same as here, in both passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_equal
from examples_corpus import some_neurons, write_example_corpus
from strict_client import NO_ENVIRONMENT, URL, StrictServer, environment_is_there

import mmneuron_lens
from mmneuron_lens import Lens
from mmneuron_lens.experiments.count import count_steps, counts_of, plan_count
from mmneuron_lens.experiments.examples import read_examples
from mmneuron_lens.experiments.tops import top_read, without_tops

pytestmark = pytest.mark.skipif(not environment_is_there(), reason=NO_ENVIRONMENT)

NAMES = ("llava-next", "instructblip")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = Path(mmneuron_lens.__file__).parent / "embedded"
    made = StrictServer([folder / name for name in NAMES], tmp_path_factory.mktemp("strict"))
    yield made
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_both_passes(name, server, tmp_path, monkeypatch):
    server.attach(monkeypatch)
    folder = server.folders[NAMES.index(name)]
    samples = write_example_corpus(tmp_path / "corpus")
    here, there = Lens(folder), Lens(folder, remote=URL)
    assert there.device.type == "meta"
    masks = some_neurons(Lens(f"embedded/{name}"))
    before = len(server.sent)
    found = read_examples(there, samples, masks, 3, batch_size=3)
    assert len(server.sent) > before + 4
    due = read_examples(here, samples, masks, 3, batch_size=3)
    assert_equal(found.packed()[0], due.packed()[0])
    assert found.samples == due.samples


def test_counts_and_top_activations(server, tmp_path, monkeypatch):
    server.attach(monkeypatch)
    samples = write_example_corpus(tmp_path / "corpus")["medical"]
    results: list[Any] = []
    for lens in (Lens(server.folders[0]), Lens(server.folders[0], remote=URL)):
        plan = plan_count(lens, samples, batch_size=3)
        read = top_read(plan.steps, 2)
        held = count_steps(lens, plan, top=read)
        counts = counts_of([_alone(one) for one in held], plan.facts)
        results.append((counts.packed()[0], read.folded(held, lens.name, "medical", plan.facts).packed()[0]))
    assert_equal(*results)
    assert all(bool(torch.as_tensor(one).numel()) for one in results[0][1].values())


def _alone(held: Any) -> Any:
    from dataclasses import replace

    return replace(held, piece=replace(held.piece, tensors=without_tops(held.piece.tensors)))
