"""A graph is proved once for each kind of batch, and what is remembered of it does not grow."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from conftest import mixed_batch, tiny_lens

from interventions import Graph, per_layer, reads, zero_neurons
from mmneuron_lens.runtime import checked
from mmneuron_lens.runtime.compile import compile_graph


@pytest.fixture
def proofs(monkeypatch):
    """How often shapes were proved."""
    made = []
    monkeypatch.setattr(checked, "check_plans", lambda *given: made.append(given[1]))
    return made


def check(lens, graph, batch) -> None:
    checked.check_once(graph, compile_graph(graph, lens.architecture), lens.model, batch)


def masked(seed: int) -> Graph:
    mask = torch.rand(3, 48, generator=torch.Generator().manual_seed(seed)) > 0.5
    return Graph((zero_neurons.bind(neurons=per_layer(mask)),))


def test_the_same_graph_is_proved_once(lens, proofs):
    batch = mixed_batch(lens)
    for seed in (1, 1, 2, 1):
        check(lens, masked(seed), batch)
    assert len(proofs) == 2
    check(lens, masked(1), batch.with_fields(mine=torch.ones_like(batch.inputs["input_ids"])))
    assert len(proofs) == 3
    check(tiny_lens("llava_next"), masked(1), batch)
    assert len(proofs) == 4


def test_a_function_that_is_written_again_is_proved_again(lens, proofs, monkeypatch):
    # A new function may lie where an old one lay.
    monkeypatch.setattr(checked, "id", lambda one: 1, raising=False)
    batch = mixed_batch(lens)

    def written() -> Graph:
        @reads("llm.mlp.act", over="list")
        def look(act):
            return act

        return Graph((look,))

    for _ in range(3):
        check(lens, written(), batch)
    assert len(proofs) == 3


def test_what_is_remembered_does_not_grow_with_masks(lens, proofs, monkeypatch):
    monkeypatch.setattr(checked, "AT_MOST", 8)
    batch, masks = mixed_batch(lens), []
    for seed in range(50):
        graph = masked(seed)
        masks.append(weakref.ref(next(iter(graph)).bindings["neurons"].values))
        check(lens, graph, batch)
    del graph
    gc.collect()
    assert [one() for one in masks] == [None] * 50
    assert len(checked._checked[lens.model]) == 8
    check(lens, masked(49), batch)
    assert len(proofs) == 50
    check(lens, masked(0), batch)
    assert len(proofs) == 51


def test_a_model_that_is_gone_is_forgotten(proofs):
    lens = tiny_lens("instructblip")
    check(lens, masked(1), mixed_batch(lens))
    model = weakref.ref(lens.model)
    before = len(checked._checked)
    proofs.clear()
    del lens
    gc.collect()
    assert model() is None
    assert len(checked._checked) == before - 1
