"""Several graphs in one job, executed by ndif's own code where our packages are absent: each result is a local one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens
from equality import assert_same_results
from strict_client import NO_ENVIRONMENT, URL, StrictServer, environment_is_there

from interventions import (
    Graph,
    count_active,
    count_active_by_kind,
    keep,
    logit_lens,
    mean_activation,
    patch_activations,
    per_layer,
    sweep,
    zero_neurons,
)
from mmneuron_lens import Lens

pytestmark = pytest.mark.skipif(not environment_is_there(), reason=NO_ENVIRONMENT)

NAMES = ("llava_next", "instructblip")
BEAMS = {"num_beams": 5, "max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The tiny models as folders, a lens with weights and one without for each, and the server."""
    root = tmp_path_factory.mktemp("strict")
    folders = []
    for name in NAMES:
        lens, folder = tiny_lens(name), root / name
        lens.module.save_pretrained(folder)
        lens.processor.save_pretrained(folder)
        folders.append(folder)
    local = {name: Lens(folder) for name, folder in zip(NAMES, folders, strict=True)}
    client = {name: Lens.weightless(folder) for name, folder in zip(NAMES, folders, strict=True)}
    server = StrictServer(folders, root)
    yield SimpleNamespace(local=local, client=client, server=server)
    server.close()


@pytest.fixture(params=NAMES)
def pair(request, place, monkeypatch):
    place.server.attach(monkeypatch)
    return place.local[request.param], place.client[request.param]


def zeroed(site: str, seed: int, width: int = 48) -> Graph:
    mask = torch.rand(3, width, generator=torch.Generator().manual_seed(seed)) < 0.3
    return Graph((zero_neurons.at(site).bind(neurons=per_layer(mask)),))


def test_graphs_of_every_kind_over_several_batches(pair):
    local, client = pair
    width = client.architecture.place("vision.mlp.act").sizes["neuron"]
    reading = count_active_by_kind.at("*.act") | keep.at("llm.residual", rows=[0]) | mean_activation
    graphs = [
        Graph(),
        zeroed("llm.mlp.act", 1) | reading,
        zeroed("vision.mlp.act", 2, width) | reading,
        zero_neurons.at(rows=0).bind(neurons=per_layer(torch.ones(3, 48, dtype=torch.bool))) | logit_lens.bind(top_k=3),
    ]
    batches = [mixed_batch(client), client.encode(pictures((40, 56)), ["why"])]
    for one, other in zip(
        local.run(graphs, batches, logits=True), client.run(graphs, batches, logits=True, remote=URL), strict=True
    ):
        assert_same_results(one, other)
    reading = count_active.at(steps="generated").named("answers") | keep.at("llm.norm", steps="all")
    graphs = [graph | reading for graph in graphs]
    here = local.generate(graphs, batches, logits=True, **BEAMS)
    there = client.generate(graphs, batches, logits=True, remote=URL, **BEAMS)
    for one, other in zip(here, there, strict=True):
        assert_same_results(one, other)
        assert len(one.text) == 4


def test_a_heat_map_sends_images_once(pair, monkeypatch):
    local, client = pair
    clean = client.encode(pictures((32, 32), seed=1), ["is it red?"])
    corrupted = client.encode(pictures((32, 32), seed=2), ["is it blu?"])
    heat = sweep(patch_activations, layers=range(3), positions=[0, -1]) | keep.at("llm.norm", positions=-1)
    here = local.run(heat, corrupted, sources=clean)
    sent = []
    real = type(corrupted).travelling
    monkeypatch.setattr(
        type(corrupted), "travelling", lambda batch, numbers=None: sent.append(batch) or real(batch, numbers)
    )
    there = client.run(heat, corrupted, sources=clean, remote=URL)
    assert len(sent) == 2
    for one, other in zip(here, there, strict=True):
        assert_same_results(one, other)
    assert heat.grid(there, "keep").shape[:2] == (3, 2)
