"""Interventions that share one forward: order, associativity, and nothing left behind."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import mixed_batch, tiny_lens
from hooks import hooked, neuron_paths, outputs
from hypothesis import given, settings
from hypothesis import strategies as st

from interventions import (
    Graph,
    add_vector,
    count_active,
    count_positions,
    keep,
    logit_lens,
    per_layer,
    scale_neurons,
    sum_activations,
    writes,
    zero_neurons,
)

MASK = torch.rand(3, 48, generator=torch.Generator().manual_seed(1)) < 0.4


def lens_by_hand(lens, hidden):
    """Top token and entropy from the model's own norm and unembedding."""
    llm = lens.module.get_submodule(lens.architecture.place("llm.norm").path)
    head = lens.module.get_output_embeddings()
    logs = head(llm(hidden)).log_softmax(-1)
    return logs.argmax(-1), -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("order", list(itertools.permutations(["zero", "count", "lens"])))
def test_all_orders_agree_with_hooks(lens, order):
    batch = mixed_batch(lens)
    parts = {"zero": zero_neurons.bind(neurons=per_layer(MASK)), "count": count_active, "lens": logit_lens}
    graph = Graph()
    for name in order:
        graph = graph | parts[name]
    out = lens.run(graph, batch)
    paths = neuron_paths(lens)["llm.mlp.act"]
    layers = [path.removesuffix(".mlp.act_fn") for path in paths]
    zeroing = {path: (lambda act, row=row: act.masked_fill(row, 0)) for path, row in zip(paths, MASK, strict=True)}
    counts, residuals = [], {}
    real = batch.inputs["attention_mask"].bool()

    def run():
        with torch.no_grad(), hooked(lens.module, zeroing):
            lens.module(**batch.inputs)

    seen = outputs(lens.module, paths, run)
    residuals = outputs(lens.module, layers, run)
    for path, row in zip(paths, MASK, strict=True):
        # A hook registered first sees the value before the one that zeroes.
        act = seen[path][0]
        act = act.masked_fill(row, 0) if order.index("zero") < order.index("count") else act
        counts.append((act[real] > 0).sum(0))
    assert torch.equal(out["count_active", "llm.mlp.act"], torch.stack(counts))
    with torch.no_grad():
        for index, path in enumerate(layers):
            top, entropy = lens_by_hand(lens, residuals[path][0])
            found = out["logit_lens", "llm.residual"][0]
            assert torch.equal(found["tokens"][index][..., 0], top)
            torch.testing.assert_close(found["entropy"][index], entropy, rtol=1e-4, atol=1e-5)


def test_writes_act_left_to_right(lens):
    batch = mixed_batch(lens)

    @writes("llm.mlp.act")
    def double(act):
        return act * 2

    @writes("llm.mlp.act")
    def add_one(act):
        return act + 1

    graph = keep.at("llm.mlp.act").named("before") | double | add_one | keep.at("llm.mlp.act").named("after")
    out = lens.run(graph.interventions[0] | Graph(graph.interventions[1:]), batch)
    first = {key[0]: value[0][0] for key, value in out.items()}
    torch.testing.assert_close(first["after"], first["before"] * 2 + 1)
    out = lens.run(
        keep.at("llm.mlp.act").named("before") | add_one | double | keep.at("llm.mlp.act").named("after"), batch
    )
    first = {key[0]: value[0][0] for key, value in out.items()}
    torch.testing.assert_close(first["after"], (first["before"] + 1) * 2)


PARTS = [
    count_active,
    count_positions,
    sum_activations,
    zero_neurons.bind(neurons=per_layer(MASK)),
    scale_neurons.bind(neurons=per_layer(~MASK), factor=0.5),
    add_vector.bind(vector=torch.ones(32)),
]


@given(st.lists(st.sampled_from(range(len(PARTS))), unique=True, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_joining_is_associative_with_an_identity(indices, data):
    parts = [Graph((PARTS[index],)) for index in indices]
    flat = Graph(tuple(PARTS[index] for index in indices))

    def join(some):
        if not some:
            return Graph()
        if len(some) == 1:
            return some[0]
        cut = data.draw(st.integers(0, len(some)))
        if cut in (0, len(some)):
            return Graph() | join(some[:-1]) | some[-1]
        return join(some[:cut]) | join(some[cut:])

    assert join(parts) == flat
    assert Graph() | flat == flat == flat | Graph()
    assert hash(join(parts)) == hash(flat)


@given(st.permutations(PARTS))
@settings(max_examples=6, deadline=None)
def test_any_bracketing_runs_the_same(parts):
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    left = Graph()
    for part in parts:
        left = left | part
    right = Graph()
    for part in reversed(parts):
        right = part | right
    one, other = lens.run(left, batch), lens.run(right, batch)
    assert set(one) == set(other)
    for key in one:
        assert torch.equal(one[key], other[key])


def test_logits_are_bit_identical_after_runs_failed_or_not(lens):
    batch = mixed_batch(lens)

    def logits():
        with torch.no_grad():
            return lens.module(**batch.inputs).logits

    before = logits()
    lens.run(zero_neurons.bind(neurons=per_layer(MASK)) | logit_lens | count_active, batch)
    assert torch.equal(logits(), before)

    @writes("llm.mlp.act")
    def fails_at_run_time(act):
        if not isinstance(act, torch._subclasses.FakeTensor):
            raise RuntimeError("in the middle of the forward")
        return act

    with pytest.raises(RuntimeError, match="in the middle of the forward"):
        lens.run(zero_neurons.bind(neurons=per_layer(MASK)) | fails_at_run_time.at(layers=1), batch)
    assert torch.equal(logits(), before)
    assert torch.equal(lens.run(Graph(), batch, logits=True).logits[0], before)


def test_results_are_not_touched_by_later_writes(lens):
    batch = mixed_batch(lens)

    @writes("llm.mlp.act")
    def spoil_in_place(act):
        return act.fill_(7.0)

    kept = lens.run(keep.at("llm.mlp.act") | spoil_in_place, batch)["keep", "llm.mlp.act"][0]
    plain = lens.run(keep.at("llm.mlp.act", layers=0), batch)["keep", "llm.mlp.act"][0]
    assert torch.equal(kept[0], plain[0])


def test_layers_left_out_stay_as_they_are(lens):
    batch = mixed_batch(lens)
    only = zero_neurons.bind(neurons=torch.ones(48, dtype=torch.bool)).at(layers=[-1])
    out = lens.run(only | keep.at("llm.mlp.act"), batch)["keep", "llm.mlp.act"][0]
    plain = lens.run(keep.at("llm.mlp.act"), batch)["keep", "llm.mlp.act"][0]
    assert torch.equal(out[:2], plain[:2])
    assert not out[2].any()


def test_a_mapping_leaves_other_sites_alone(lens):
    batch = mixed_batch(lens)
    neurons = per_layer({"vision.mlp.act": torch.ones(3, 40, dtype=torch.bool)})
    out = lens.run(zero_neurons.at("*.act").bind(neurons=neurons) | keep.at(["vision.mlp.act", "llm.mlp.act"]), batch)
    assert not out["keep", "vision.mlp.act"][0].any()
    assert out["keep", "llm.mlp.act"][0].any()
