"""A model whose layers lie on two GPUs computes what it computes on one device, and no tensors of two devices meet."""

from __future__ import annotations

import copy
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import mixed_batch, pictures
from placed import Placed, Places, spread
from torch import Tensor
from torch.utils._pytree import tree_leaves

from interventions import (
    add_vector,
    batch_field,
    count_active,
    count_active_by_kind,
    count_checked,
    count_positions,
    direct_logit_attribution,
    keep,
    knock_out_attention,
    last_hidden_state,
    lens_entropy,
    logit_lens,
    mean_ablate_neurons,
    mean_activation,
    module,
    patch_activations,
    per_layer,
    reads,
    root_mean_square,
    scale_neurons,
    sum_activations,
    zero_neurons,
)
from mmneuron_lens import Lens

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

MODELS = {
    "llava_next": tiny_models.llava_next,
    "instructblip": tiny_models.instructblip,
    "qwen2_5_vl": newer_models.qwen2_5_vl,
    "gemma3": newer_models.gemma3,
}
BEAMS: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@pytest.fixture(params=MODELS)
def both(request, monkeypatch):
    """The same model on the CPU and on two devices that are said to be GPUs."""
    # It calls functions on fake tensors of its own, one device at a time.
    monkeypatch.setattr("mmneuron_lens.runtime.run.check_once", lambda *_: None)
    # Not the one that other tests share, which nnsight may hold already.
    made, processor = MODELS[request.param].__wrapped__()
    return Lens.wrap(copy.deepcopy(made), processor), Lens.wrap(spread(made), processor)


def same(here, there) -> None:
    """Every result is what it is on one device, bit by bit."""
    assert list(here) == list(there) != []
    for key in here:
        expected, found = tree_leaves(here[key]), tree_leaves(there[key])
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other.as_subclass(Tensor), one, rtol=0, atol=0, equal_nan=True, msg=str(key))
    assert here.text == there.text


def sizes(lens: Lens) -> tuple[int, int, int]:
    """Layers, neurons and hidden size of the language model."""
    config = lens.module.config.get_text_config()
    return config.num_hidden_layers, config.intermediate_size, config.hidden_size


@reads("llm.residual", over="sum", unembed=module("llm.norm", "llm.unembed"), weight=batch_field("weight"))
def best_logit(hidden, unembed, weight):
    """A function of one's own, in which logits of the last device meet what lies beside a layer."""
    return (unembed(hidden).amax(-1) * weight + hidden.mean(-1)).sum()


def reading(lens: Lens):
    direction = torch.linspace(-1, 1, sizes(lens)[2])
    graph = count_active_by_kind.at("*.act") | count_checked.at("*.act") | count_positions.at("*.act")
    graph |= (
        count_active
        | sum_activations
        | mean_activation
        | keep.at("*.residual")
        | keep.at("llm.attention.mask").named("masks")
    )
    graph |= logit_lens | lens_entropy | last_hidden_state | root_mean_square.bind(epsilon=1e-6)
    return graph | direct_logit_attribution.bind(direction=direction) | best_logit


def writing(lens: Lens):
    layers, neurons, hidden = sizes(lens)
    mask = torch.rand(layers, neurons, generator=torch.Generator().manual_seed(0)) < 0.2
    graph = zero_neurons.bind(neurons=per_layer(mask)) | scale_neurons.bind(neurons=per_layer(~mask), factor=0.9)
    graph |= mean_ablate_neurons.bind(neurons=per_layer(mask), mean=per_layer(torch.ones(layers, neurons)))
    graph |= zero_neurons.bind(neurons=per_layer(mask)).at(positions="image")
    return graph | add_vector.bind(vector=torch.linspace(-1, 1, hidden)).at(positions=slice(-2, None))


def test_reads(both):
    here, there = both
    batch = mixed_batch(here)
    with Places():
        found = there.run(reading(there), batch, logits=True)
    same(here.run(reading(here), batch, logits=True), found)
    assert {str(one.device) for one in there.module.parameters()} == {"cuda:0", "cuda:1"}
    assert isinstance(found["count_active"], Placed)


def test_writes(both):
    here, there = both
    batch = mixed_batch(here)
    image = batch.fields["llm"]["kind"][..., 0]
    cut = knock_out_attention.bind(queries=~image, keys=image)
    with Places():
        found = there.run(writing(there) | cut | count_active, batch)
    same(here.run(writing(here) | cut | count_active, batch), found)


def test_generation_with_beams(both):
    here, there = both
    batch = mixed_batch(here)
    graph = writing(here) | count_active_by_kind.at(steps="all") | count_active.at(steps="all", all_beams=True)
    with Places():
        found = there.generate(graph, batch, logits=True, **BEAMS)
    same(here.generate(graph, batch, logits=True, **BEAMS), found)


def test_rewires(both):
    here, there = both
    batch = mixed_batch(here)
    source = here.encode(pictures((40, 56), (64, 30), (32, 32), seed=1), [text for text in batch.given[1]])
    graph = patch_activations.at("*.residual") | count_active
    with Places():
        found = there.run(graph, batch, sources=source)
    same(here.run(graph, batch, sources=source), found)


@pytest.mark.parametrize("cut", [False, True])
def test_packed_questions(both, cut, monkeypatch):
    monkeypatch.setattr("mmneuron_lens.wire.pack.LONG", 1)
    here, there = both
    batch = here.pack([(pictures((40, 56)), ["Is it red?", "why", "how many?"])], cut=cut)
    graph = count_active_by_kind.at("*.act") | count_positions.at("*.act")
    with Places():
        found = there.run(graph, batch)
    same(here.run(graph, batch), found)
