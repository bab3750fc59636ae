"""Functions that shapes alone cannot run are tried on random values: `check` says so, and they work."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import mixed_batch
from hooks import neuron_paths, outputs
from jaxtyping import Float, Int
from torch import Tensor

from interventions import Graph, batch_field, count_active, logit_lens, module, reads, writes
from mmneuron_lens import Lens
from mmneuron_lens.runtime import calling
from mmneuron_lens.runtime.shapes import ShapeError


@reads("llm.mlp.act", over="list")
def masked(act):
    return act[act > 0.5]


@reads("llm.mlp.act", over="list")
def largest(act):
    return act.max().item()


@reads("llm.mlp.act", over="list")
def places(act):
    return (act > 0.5).nonzero()


@reads("llm.mlp.act", over="list")
def decides(act):
    if act.max() > 0.5:
        return act.amax(0)
    return act.amin(0)


@reads("llm.mlp.act", over="list")
def listed(act):
    return torch.tensor(act[0, 0].tolist())


@reads("llm.mlp.act", over="list")
def different(act):
    return torch.unique(act.round())


@reads("llm.mlp.act", over="list")
def by_numpy(act):
    return torch.from_numpy(numpy.sort(act.numpy(), axis=-1))


@reads("llm.mlp.act", over="list")
def loops(act):
    total = torch.zeros(act.shape[-1])
    for row in range(int((act[:, 0, 0] > 0).sum())):
        total = total + act[row].sum(0)
    return total


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def real_only(act: Float[Tensor, "row token neuron"], weight: Int[Tensor, "row token"]) -> Float[Tensor, " neuron"]:
    return act[weight > 0].double().sum(0)


READS = {
    masked: "makes a tensor whose shape depends on values (nonzero)",
    largest: "takes a value out of a tensor (a number or a condition)",
    places: "makes a tensor whose shape depends on values (nonzero)",
    decides: "takes a value out of a tensor (a number or a condition)",
    listed: "takes a value out of a tensor (a number or a condition)",
    different: "makes a tensor whose shape depends on values (unique2)",
    by_numpy: "cannot run on shapes (RuntimeError: .numpy() is not supported for tensor subclasses.)",
    loops: "takes a value out of a tensor (a number or a condition)",
}


@pytest.mark.parametrize("read", READS, ids=[one.name for one in READS])
def test_they_are_tried_and_work_here_and_remote(lens, read):
    batch = mixed_batch(lens)
    found = lens.check(count_active | read, batch)
    assert found.proved == ("count_active at llm.mlp.act",)
    assert found.tried == {f"{read.name} at llm.mlp.act": f"it {READS[read]}; tried on random values, where it fits"}
    assert repr(found).splitlines()[:2] == ["Check", "  proved on shapes: count_active at llm.mlp.act"]
    assert repr(found).splitlines()[2].startswith(f"  not proved: {read.name} at llm.mlp.act: it ")
    here, there = lens.run(read, batch)[read.name][0], lens.run(read, batch, remote="local")[read.name][0]
    paths = neuron_paths(lens)["llm.mlp.act"]
    seen = outputs(lens.module, paths, lambda: lens.module(**batch.inputs))
    for layer, path in enumerate(paths):
        expected = read(seen[path][0])
        for value in (here, there):
            assert value[layer] == expected if isinstance(expected, float) else torch.equal(value[layer], expected)


def test_a_run_says_nothing(lens, capsys, recwarn):
    lens.run(masked, mixed_batch(lens))
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


def test_fields_keep_their_values(lens):
    batch = mixed_batch(lens)
    assert "real_only at llm.mlp.act" in lens.check(real_only, batch).tried
    act = outputs(lens.module, neuron_paths(lens)["llm.mlp.act"], lambda: lens.module(**batch.inputs))
    expected = torch.stack(
        [act[path][0][batch.inputs["attention_mask"] > 0].double().sum(0) for path in neuron_paths(lens)["llm.mlp.act"]]
    )
    assert torch.equal(lens.run(real_only, batch)["real_only"], expected)


def test_without_weights(lens, tmp_path):
    lens.module.save_pretrained(tmp_path)
    lens.processor.save_pretrained(tmp_path)
    light = Lens.weightless(tmp_path)

    @reads("llm.residual", over="list", unembed=module("llm.norm", "llm.unembed"))
    def sure(hidden, unembed):
        logits = unembed(hidden)
        assert logits.shape[-1] == 101
        return logits[logits.softmax(-1) > 0.5]

    found = light.check(sure | logit_lens, mixed_batch(light))
    assert list(found.tried) == ["sure at llm.residual"]
    assert found.proved == ("logit_lens at llm.residual",)


def test_a_trial_leaves_no_trace(lens):
    vector = torch.ones(48)

    @reads("llm.mlp.act", over="list")
    def draws(act, vector):
        vector.mul_(torch.rand(48))
        return act[act > 0.5].sum() * act.fill_(0).sum()

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert lens.check(draws.bind(vector=vector), mixed_batch(lens)).tried
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(vector, torch.ones(48))


@writes("llm.mlp.act")
def too_few(act):
    return act[act > 0.5]


@reads("llm.mlp.act", over="mean", weight=batch_field("weight"))
def no_pair(act, weight):
    return act[act > 0.5].sum()


@reads("llm.mlp.act", over="list")
def mistyped(act: Float[Tensor, "row token neuron"]) -> Float[Tensor, "row token"]:
    return act[act > 0.5]


@reads("llm.mlp.act", over="list")
def multiplied(act):
    return act[act > 0.5][None] @ torch.zeros(3)


@reads("llm.mlp.act", over="list")
def misspelt(act):
    return act.max().item().rounded()


FAULTS = {
    too_few: r"too_few at llm\.mlp\.act returned \[\d+\] for a value of shape \[3, \d+, 48\]; a write returns a tensor",
    no_pair: r'a read with over="mean" returns the pair \(sum, weight\)',
    mistyped: r"what it returns: expected Float\[Tensor, 'row token'\], got float32 \[\d+\]",
    multiplied: r"multiplied does not fit llm\.mlp\.act \(value \[3, \d+, 48\]\): RuntimeError: .*trials\.py:\d+\)",
    misspelt: r"AttributeError: 'float' object has no attribute 'rounded' \(.*test_trials\.py:\d+\)",
}


@pytest.mark.parametrize("wrong", FAULTS, ids=[one.name for one in FAULTS])
def test_what_random_values_refute_is_refused(lens, wrong, monkeypatch):
    batch = mixed_batch(lens)
    monkeypatch.setattr(lens.module, "forward", None)
    for do in (lens.check, lens.run):
        with pytest.raises(ShapeError, match=FAULTS[wrong]) as caught:
            do(wrong, batch)
        assert "\n" not in str(caught.value)


def test_what_other_values_may_not_raise_refutes_nothing(lens):
    batch = mixed_batch(lens)
    path = neuron_paths(lens)["llm.mlp.act"][0]
    top = outputs(lens.module, [path], lambda: lens.module(**batch.inputs))[path][0].max().item()

    @reads("llm.mlp.act", over="list")
    def known(act):
        return {top: act.sum()}[act.max().item()]

    found = lens.check(known, batch)
    assert found.tried["known at llm.mlp.act"].startswith("it takes a value out of a tensor")
    assert "raised KeyError" in found.tried["known at llm.mlp.act"]
    assert len(lens.run(known.at(layers=0), batch)["known"][0]) == 1


def test_large_values_are_not_made_for_a_trial(lens, monkeypatch):
    monkeypatch.setattr(calling, "AT_MOST", 100)
    batch = mixed_batch(lens)
    assert "too many to try" in lens.check(masked, batch).tried["masked at llm.mlp.act"]
    assert lens.run(masked, batch)["masked"]

    @reads("llm.mlp.act", over="list")
    def wrong(act):
        return act @ torch.zeros(3)

    with pytest.raises(ShapeError, match="wrong does not fit"):
        lens.check(wrong, batch)


def test_what_shapes_prove_is_not_tried(lens, monkeypatch):
    monkeypatch.setattr(calling, "_random", None)
    assert lens.check(Graph((count_active,)), mixed_batch(lens)).tried == {}
