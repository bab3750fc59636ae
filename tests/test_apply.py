"""`lens.apply(graph)` inside a trace does and returns what `lens.run` does, in the block or in workers of its own."""

from __future__ import annotations

import copy
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import ARCHITECTURES, pictures
from test_site_values import DECODERS, EMBEDDED, batch_of, change, lens_of
from torch import Tensor

from interventions import (
    batch_field,
    count_active,
    count_active_by_kind,
    keep,
    mean_activation,
    patch_activations,
    reads,
    value_of,
    writes,
)
from mmneuron_lens import Lens
from mmneuron_lens.runtime.caching import cached_graph
from mmneuron_lens.runtime.shapes import ShapeError

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

APART = ("projector.deep.act",)
"""Projectors that run between layers of the tower: the block cannot go through both."""


@pytest.fixture(params=(*ARCHITECTURES, *DECODERS, *newer_models.ARCHITECTURES, *EMBEDDED))
def named(request):
    return lens_of(request.param), batch_of(request.param)


def same(one: Any, other: Any) -> None:
    assert set(one) == set(other)
    for key in other:
        # A run returns one item a batch of what is listed.
        expected = other[key][0] if isinstance(other[key], list) else other[key]
        assert torch.equal(one[key], expected), key


def test_every_site_at_once(named):
    lens, batch = named
    whole = cached_graph(lens.model, batch)
    expected = lens.run(whole, batch)
    sites = [site for one in whole for site in one.sites if site not in APART]
    with lens.trace(batch):
        out = lens.apply(keep.at(sites))
        logits = lens.nnsight.output.logits.save()
    assert set(out) == {("keep", site) for site in sites}
    for key in out:
        assert torch.equal(out[key], expected[key][0]), key
    with lens.trace() as tracer:
        with tracer.invoke(**batch.inputs):
            again = lens["llm.logits"].value.save()
        later = lens.apply(whole, tracer)
    same(later, expected)
    assert torch.equal(again, logits)
    assert repr(later) == repr(lens.run(whole, batch)).replace("list of 1: ", "")


def test_writes_and_folds(named):
    lens, batch = named
    # Twice at one site: what is counted is what was written; between sites the model's own order decides.
    counts = count_active.at("*.mlp.act") | mean_activation
    graph = change.at("llm.mlp.act", layers=[0, 2]) | counts | change.at("llm.attention.z")
    expected = lens.run(graph, batch, logits=True)
    with torch.no_grad(), lens.trace(batch):
        out = lens.apply(graph)
        logits = lens["llm.logits"].value.save()
    same(out, expected)
    assert torch.equal(logits, expected.logits[0])
    with torch.no_grad(), lens.trace() as tracer:
        with tracer.invoke(**batch.inputs):
            logits = lens["llm.logits"].value.save()
        later = lens.apply(graph, tracer)
    same(later, expected)
    assert torch.equal(logits, expected.logits[0])


@pytest.mark.parametrize("name", ["llava_next", "gemma3", "glm4v", "internvl"])
def test_weights_of_attention_come_when_the_heads_are_mixed(name):
    module, processor = getattr(tiny_models if name in ARCHITECTURES else newer_models, name)()
    module = copy.deepcopy(module)
    module.set_attn_implementation("eager")
    lens, batch = Lens.wrap(module, processor), batch_of(name)
    graph = cached_graph(lens.model, batch)
    assert "llm.attention.pattern" in {site for one in graph for site in one.sites}
    with lens.trace(batch):
        out = lens.apply(graph)
    same(out, lens.run(graph, batch))


@writes("llm.residual")
def add(value: Tensor, mine: Tensor) -> Tensor:
    return value + mine[..., None]


def test_fields_of_a_batch_and_packed_rows():
    lens = lens_of("llava_next")
    batch = batch_of("llava_next")
    own = batch.with_fields(mine=torch.linspace(0, 1, batch.prompt_length).expand(batch.rows, -1))
    graph = add.bind(mine=batch_field("mine")).at(layers=1, steps="prompt") | keep.at("llm.norm")
    with lens.trace(own):
        out = lens.apply(graph)
    same(out, lens.run(graph, own))

    def with_inputs_alone(given: Any) -> None:
        with lens.trace() as tracer:  # noqa: SIM117
            with tracer.invoke(**given.inputs):
                lens.apply(graph)

    with pytest.raises(KeyError, match=r"the batch has no field 'mine' there"):
        with_inputs_alone(own)
    packed = lens.pack([([pictures((40, 56))[0]], ["what?", "why is it?"])])
    with lens.trace(packed):
        out = lens.apply(count_active_by_kind)
    same(out, lens.run(count_active_by_kind, packed))
    with pytest.raises(ValueError, match=r"open the trace with `with lens.trace\(batch\):`, or the invoke with"):
        with_inputs_alone(packed)


def test_in_a_generation_it_acts_in_the_step_under_way():
    lens, batch = lens_of("qwen2_vl"), batch_of("qwen2_vl")
    settings: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": 2, "do_sample": False}
    graph = change.at("llm.mlp.act", layers=1) | keep.at("llm.norm", steps="all", all_beams=True)
    expected = lens.generate(graph, batch, **settings)
    found = []
    with lens.trace_generation(batch, **settings) as tracer:
        for _ in tracer.iter[:3]:
            found.append(lens.apply(graph | count_active.at("vision.mlp.act")))
    assert [("count_active", "vision.mlp.act") in one for one in found] == [True, False, False]
    for one, other in zip(found, expected["keep", "llm.norm"][0], strict=True):
        assert torch.equal(one["keep", "llm.norm"], other)


@reads("llm.mlp.act", over="list")
def in_numpy(act: Tensor) -> Tensor:
    return torch.from_numpy(act.numpy().copy())


def test_a_read_is_called_as_a_run_calls_it_and_gradients_go_on():
    lens, batch = lens_of("llava_next"), batch_of("llava_next")
    graph = in_numpy | change.at("llm.attention.z")
    with lens.trace(batch):
        embedding = lens["llm.embedding"].value
        out = lens.apply(graph)
        with lens["llm.logits"].value.sum().backward():
            gradient = embedding.grad.save()
    lens.module.zero_grad()
    same(out, lens.run(graph, batch))
    assert gradient.any()
    assert not out["in_numpy"].requires_grad


@reads("llm.mlp.act", over="list")
def fails(act: Tensor) -> Tensor:
    raise RuntimeError("mine")


@reads("llm.residual", over="list")
def fails_late(value: Tensor) -> Tensor:
    if float(value.abs().max()) > 1e5:
        raise OverflowError("of what is large")
    return value


def test_what_cannot_be_applied_is_said():
    lens, batch = lens_of("llava_next"), batch_of("llava_next")
    graph = keep.at("llm.mlp.act")
    with pytest.raises(ValueError, match=r"lens.apply acts while the model runs: write it inside"):
        lens.apply(graph)

    def late() -> None:
        with lens.trace(batch):
            _ = lens["llm.norm"].value
            lens.apply(graph)

    with pytest.raises(
        ValueError, match=r"the model already ran past llm.mlp.act layer 0; apply a graph before the block"
    ):
        late()

    def between() -> None:
        with lens_of("qwen3_vl").trace(batch_of("qwen3_vl")):
            lens_of("qwen3_vl").apply(keep.at(["vision.residual", "projector.deep.act"]))

    with pytest.raises(
        ValueError, match=r"ran past projector.deep.act layer 0; .* lens.apply\(graph, tracer\), beside"
    ):
        between()
    with (
        pytest.raises(ValueError, match=r"patch_activations rewires, and a trace has no source batch"),
        lens.trace(batch),
    ):
        lens.apply(patch_activations.at("llm.residual"))
    bound = add.bind(mine=value_of("llm.norm"))
    with pytest.raises(ValueError, match=r"add: mine=value_of\(llm.norm\) needs more than one pass"), lens.trace(batch):
        lens.apply(bound)
    said = r"fails does not fit llm.mlp.act \(value \[2, 81, 48\]\): RuntimeError: mine"
    with pytest.raises(ShapeError, match=said), lens.trace(batch):
        lens.apply(fails)

    def overflow() -> None:
        with lens.trace(batch):
            lens["llm.embedding"].value = torch.full_like(lens["llm.embedding"].value, 1e6)
            lens.apply(fails_late)

    with pytest.raises(OverflowError, match="of what is large") as raised:
        overflow()
    assert "(in fails_late at llm.residual, layer 0)" in raised.value.__notes__
    with pytest.raises(TypeError, match="A graph or an intervention is run"), lens.trace(batch):
        lens.apply("graph")

    def early() -> None:
        with lens.trace() as tracer:
            with tracer.invoke(**batch.inputs):
                pass
            out = lens.apply(graph, tracer)
            _ = out["keep"]

    with pytest.raises(ValueError, match="is there when the trace has ended"):
        early()
    # Whatever failed, the next trace is not disturbed.
    with lens.trace(batch):
        out = lens.apply(graph)
    same(out, lens.run(graph, batch))
