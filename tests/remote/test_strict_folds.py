"""Folds and samples where our packages are absent: executed by ndif's own code, equal to a local run to the bit."""

from __future__ import annotations

import pytest
import torch
from conftest import pictures, tiny_lens
from equality import assert_same_results
from jaxtyping import Float, Int
from strict_client import NO_ENVIRONMENT, URL, StrictServer, environment_is_there
from torch import Tensor

from interventions import batch_field, largest, maximum_activation, reads, top_activations
from mmneuron_lens import Lens

pytestmark = pytest.mark.skipif(not environment_is_there(), reason=NO_ENVIRONMENT)


def joined(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"least": smaller(left["least"], right["least"]), "count": left["count"] + right["count"]}


def smaller(left: Float[Tensor, " neuron"], right: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    return torch.minimum(left, right)


@reads("llm.mlp.act", over=joined, weight=batch_field("weight"))
def least(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> dict[str, Tensor]:
    values = act.masked_fill((weight == 0)[..., None], torch.inf)
    return {"least": values.flatten(0, -2).amin(0), "count": (weight > 0).sum()}


@reads("*.act", over="list", sample=batch_field("sample"), position=batch_field("position"))
def places(act: Float[Tensor, "*where neuron"], sample: Int[Tensor, "*where"], position: Int[Tensor, "*where"]):
    return torch.stack([sample, position], -1)


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_folds_and_samples(name, tmp_path, monkeypatch):
    made, folder = tiny_lens(name), tmp_path / name
    made.module.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    server = StrictServer([folder], tmp_path)
    server.attach(monkeypatch)
    local, client = Lens(folder), Lens.weightless(folder)
    images = pictures((40, 56), (64, 30), (32, 32))
    batches = [client.pack([(images[:1], ["is it red?", "why"])]), client.encode(images[1:], ["what is it?", "how"])]
    three = top_activations.folded(largest(3, by="activation", distinct="sample")).named("three")
    graph = top_activations.at("*.act") | three | maximum_activation | least | places
    for some in (batches, [one.with_samples(range(7, 7 + one.sample_count)) for one in batches]):
        assert_same_results(local.run(graph, some), client.run(graph, some, remote=URL))
    server.close()
