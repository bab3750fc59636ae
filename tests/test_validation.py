"""What is wrong with a graph is said in one line, with the choices, before the model runs."""

from __future__ import annotations

import pytest
import torch
from conftest import mixed_batch
from jaxtyping import Bool, Float
from torch import Tensor

from interventions import (
    Graph,
    count_active,
    keep,
    module,
    patch_activations,
    per_layer,
    reads,
    writes,
    zero_neurons,
)
from mmneuron_lens import Lens
from mmneuron_lens.runtime.shapes import ShapeError


@pytest.fixture
def untouchable(lens, monkeypatch):
    """A lens whose model must not run."""

    def forward(*_arguments, **_keywords):
        raise AssertionError("the model ran")

    batch = mixed_batch(lens)
    monkeypatch.setattr(lens.module, "forward", forward)
    return lens, batch


def test_misspelt_site():
    with pytest.raises(
        KeyError, match=r"Unknown site 'llm\.mlp\.akt'\. Did you mean 'llm\.mlp\.act'\? Choices: vision"
    ):
        count_active.at("llm.mlp.akt")


def test_a_site_of_another_architecture(untouchable):
    lens, batch = untouchable
    absent = "qformer.query.act" if lens.architecture.name == "LLaVA-NeXT" else "projector.act"
    with pytest.raises(KeyError, match=f"Unknown site '{absent}'.*Choices: vision"):
        lens.run(count_active.at(absent), batch)


def test_misspelt_module(untouchable):
    lens, batch = untouchable

    @reads("llm.residual", over="list", unembed=module("llm.norm", "llm.unenbed"))
    def look(hidden, unembed):
        return unembed(hidden)

    with pytest.raises(KeyError, match=r"Did you mean 'llm\.unembed'"):
        lens.run(look, batch)


def test_unbound_argument(untouchable):
    lens, batch = untouchable
    with pytest.raises(TypeError, match=r"zero_neurons is not complete: write zero_neurons\.bind\(neurons=\.\.\.\)"):
        lens.run(zero_neurons, batch)


def test_unknown_argument():
    with pytest.raises(TypeError, match=r"zero_neurons: Unknown argument 'neuron'\. Did you mean 'neurons'\?"):
        zero_neurons.bind(neuron=1)


def test_wrong_number_of_layers(untouchable):
    lens, batch = untouchable
    with pytest.raises(ValueError, match=r"neurons=per_layer\(\.\.\.\) has shape \[4, 48\].*first axis must be 3"):
        lens.run(zero_neurons.bind(neurons=per_layer(torch.zeros(4, 48, dtype=torch.bool))), batch)
    with pytest.raises(IndexError, match=r"llm\.mlp\.act has layers 0 to 2, not 3"):
        lens.run(count_active.at(layers=3), batch)


def test_wrong_number_of_neurons(untouchable):
    lens, batch = untouchable
    with pytest.raises(
        ShapeError, match=r"zero_neurons does not fit llm\.mlp\.act \(value \[3, \d+, 48\], neurons \[47\]\)"
    ):
        lens.run(zero_neurons.bind(neurons=per_layer(torch.zeros(3, 47, dtype=torch.bool))), batch)


def test_wrong_type_of_a_binding(untouchable):
    lens, batch = untouchable
    with pytest.raises(ShapeError, match="zero_neurons does not fit"):
        lens.run(zero_neurons.bind(neurons=per_layer(torch.zeros(3, 48))), batch)


def test_a_write_that_changes_the_shape(untouchable):
    lens, batch = untouchable

    @writes("llm.mlp.act")
    def halve(act: Float[Tensor, "*where neuron"]) -> Float[Tensor, "*where half"]:
        return act[..., ::2]

    with pytest.raises(ShapeError, match=r"halve at llm\.mlp\.act returned \[3, \d+, 24\]"):
        lens.run(halve, batch)


def test_annotations_are_proved_too(untouchable):
    lens, _batch = untouchable

    @reads("llm.mlp.act", over="sum", weight=1)
    def claims(act: Float[Tensor, "batch token neuron"], weight: int) -> Bool[Tensor, " neuron"]:
        return act.sum((0, 1))

    with pytest.raises(ShapeError, match="claims does not fit"):
        lens.check(claims.at("llm.mlp.act", positions=-1), batch_without_padding(lens))


def batch_without_padding(lens):
    from conftest import pictures

    return lens.encode(pictures((32, 32)), ["one row"])


def test_kinds_that_a_site_does_not_have(untouchable):
    lens, batch = untouchable
    with pytest.raises(KeyError, match=r"vision\.mlp\.act has no 'image' positions\. Choices: cls, patch"):
        lens.run(count_active.at("vision.mlp.act", positions="image"), batch)
    with pytest.raises(ValueError, match=r"Unknown kind of position 'imag'\. Did you mean 'image'"):
        count_active.at(positions="imag")


def test_two_results_under_one_key():
    with pytest.raises(
        ValueError, match=r"Two results would come back as out\['count_active', 'llm\.mlp\.act'\].*named"
    ):
        count_active | count_active
    assert len(count_active | count_active.named("again")) == 2


def test_attention_weights_need_eager_attention(untouchable):
    lens, batch = untouchable
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        lens.run(keep.at("llm.attention.pattern"), batch)


def test_what_cannot_be_written_says_where_to_write(untouchable):
    lens, batch = untouchable

    @writes("llm.attention.pattern")
    def uniform(pattern):
        return pattern

    with pytest.raises(ValueError, match=r"llm\.attention\.pattern cannot be written: .*llm\.attention\.mask"):
        lens.run(uniform, batch)


def test_a_rewire_without_sources(untouchable):
    lens, batch = untouchable
    with pytest.raises(TypeError, match=r"sources=\[\.\.\.\]"):
        lens.run(patch_activations, batch)


def test_only_interventions_join():
    with pytest.raises(TypeError, match="decorate the function with @reads, @writes or @rewires"):
        Graph((len,))
    with pytest.raises(TypeError, match=r"@reads names at least one site"):
        reads(over="sum")
    with pytest.raises(ValueError, match=r"Unknown over 'summ'\. Did you mean 'sum'"):
        reads("llm.mlp.act", over="summ")


def test_a_site_that_text_alone_does_not_reach(monkeypatch):
    from conftest import tiny_lens

    lens = tiny_lens("llava_next")
    batch = lens.encode(None, ["text alone"])
    with pytest.raises(KeyError, match=r"vision\.mlp\.act is never reached: this batch has no image"):
        lens.run(count_active.at("vision.mlp.act"), batch)
    assert lens.run(count_active, batch)["count_active", "llm.mlp.act"].shape == (3, 48)


def test_checking_needs_no_weights(lens, tmp_path):
    lens.module.save_pretrained(tmp_path)
    lens.processor.save_pretrained(tmp_path)
    light = Lens.weightless(tmp_path)
    assert light.device.type == "meta"
    batch = mixed_batch(light)
    light.check(
        count_active.at("*.act") | zero_neurons.bind(neurons=per_layer(torch.zeros(3, 48, dtype=torch.bool))), batch
    )
    with pytest.raises(ShapeError, match="zero_neurons does not fit"):
        light.check(zero_neurons.bind(neurons=per_layer(torch.zeros(3, 40, dtype=torch.bool))), batch)
