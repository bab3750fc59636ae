"""`lens[site][layer].value` in a trace is what a graph reads there, for every site of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import ARCHITECTURES, pictures
from torch import Tensor
from transformers import OPTConfig

from interventions import keep, writes
from mmneuron_lens import Lens
from mmneuron_lens.runtime.caching import reached
from mmneuron_lens.wire.views import see

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

EMBEDDED = ("embedded/llava-next", "embedded/instructblip", "embedded/idefics3")
TEXTS = ["Is it red?", "why"]


DECODERS = ("opt", "phi3")
"""Decoders that flatten rows and tokens, or fuse queries, keys and values."""


def on_decoder(name: str) -> Lens:
    if name == "phi3":
        return Lens.wrap(
            *tiny_models.on("llava_next", newer_models.text_config("Phi3Config", 101, sliding_window=None))
        )
    sizes = {"vocab_size": 101, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 3}
    return Lens.wrap(*tiny_models.on("blip2", OPTConfig(**sizes, num_attention_heads=4, pad_token_id=0)))


@cache
def lens_of(name: str, attention: str = "sdpa") -> Lens:
    if "/" in name:
        return Lens(name, attn_implementation=attention)
    if name in DECODERS:
        return on_decoder(name)
    lens = Lens.wrap(*getattr(tiny_models if name in ARCHITECTURES else newer_models, name)())
    return lens


@cache
def batch_of(name: str):
    return lens_of(name).encode(pictures((40, 56), (64, 30)), TEXTS)


@pytest.fixture(params=(*ARCHITECTURES, *DECODERS, *newer_models.ARCHITECTURES, *EMBEDDED))
def named(request):
    return request.param, lens_of(request.param), batch_of(request.param)


def places(lens: Lens, batch: Any) -> list[tuple[str, int | None]]:
    """Every site and layer that a forward of this batch comes by."""
    return [
        (site, layer)
        for site in lens.sites
        if reached(lens.model, site, batch)
        for layer, _ in lens.architecture.place(site).paths()
    ]


def at(lens: Lens, site: str, layer: int | None) -> Any:
    return lens[site] if layer is None else lens[site][layer]


def test_a_value_is_what_a_graph_reads(named):
    _, lens, batch = named
    wanted = places(lens, batch)
    sites = list(dict.fromkeys(site for site, _ in wanted))
    out = lens.run(keep.at(sites), batch)
    found: dict[tuple[str, int | None], Tensor] = {}
    with lens.nnsight.trace() as tracer:
        with tracer.invoke(**batch.inputs):
            pass
        for site, layer in wanted:
            with tracer.invoke():
                found[site, layer] = at(lens, site, layer).value.detach().clone()
    assert set(found) == set(wanted)
    for (site, layer), value in found.items():
        expected = out["keep", site][0]
        assert torch.equal(value, expected if layer is None else expected[layer]), (site, layer)


def own_tensor(place: Any, positional: Any, keywords: Any, output: Any) -> tuple[Any, Tensor]:
    """All that a module was given or returned, and the tensor in it that a site is a view of."""
    if place.at == "output":
        return output, output if place.item is None else output[place.item]
    return (positional, keywords), positional[0] if positional else keywords[place.item]


def plain_gradient(lens: Lens, batch: Any, site: str, layer: int | None) -> Tensor | None:
    """By a hook of torch and `retain_grad` on the module's own tensor, then seen as the site shows it."""
    place = lens.architecture.place(site)
    path = dict(place.paths())[layer]
    seen: list[tuple[Any, Tensor]] = []

    def before(_module: Any, positional: Any, keywords: Any) -> None:
        after(_module, positional, keywords, None)

    def after(_module: Any, positional: Any, keywords: Any, output: Any) -> None:
        seen.append(own_tensor(place, positional, keywords, output))
        seen[-1][1].retain_grad()

    module = lens.module.get_submodule(path)
    hook: Callable[..., Any] = after if place.at == "output" else before
    register = module.register_forward_hook if place.at == "output" else module.register_forward_pre_hook
    handle = register(hook, with_kwargs=True)
    try:
        loss_of(lens.module(**batch.inputs).logits).backward()
    finally:
        handle.remove()
        lens.module.zero_grad()
    held, own = seen[0]
    if own.grad is None:
        return None
    order = batch.fields.get("vision", {}).get("order")
    return see(own.grad, place.view, {"held": held, "layer": layer, "rows": batch.rows, "order": order})


def loss_of(logits: Tensor) -> Any:
    weights = torch.linspace(-1, 1, logits.shape[-1])
    return (logits[:, -2:] * weights).sum()


def traced_gradient(lens: Lens, batch: Any, site: str, layer: int | None) -> Tensor:
    with lens.trace(batch):
        value = at(lens, site, layer).value
        loss = loss_of(value if site == "llm.logits" else lens["llm.logits"].value)
        with loss.backward():
            gradient = value.grad.save()
    lens.module.zero_grad()
    return gradient


def first_and_last(lens: Lens, batch: Any) -> list[tuple[str, int | None]]:
    def ends(site: str, layer: int | None) -> bool:
        return layer in (None, 0, (lens.architecture.place(site).layers or 1) - 1)

    return [one for one in places(lens, batch) if ends(*one) and one[0] != "llm.attention.mask"]


def test_a_gradient_is_that_of_plain_autograd(named):
    _, lens, batch = named
    for site, layer in first_and_last(lens, batch):
        expected = plain_gradient(lens, batch, site, layer)
        if expected is None:
            assert not lens.architecture.place(site).reaches(layer), (site, layer)
            continue
        torch.testing.assert_close(traced_gradient(lens, batch, site, layer), expected, msg=f"{site} {layer}")


def changed(value: Tensor) -> Tensor:
    if value.dtype == torch.bool:
        # A position no longer sees its neighbour.
        width = value.shape[-1]
        return value & ~torch.ones_like(value).tril(-1).triu(-1) if width == value.shape[-2] else value
    return value * 0.5 + 0.25


@writes("*")
def change(value: Tensor) -> Tensor:
    return changed(value)


@pytest.mark.parametrize("how", ["assigned", "in place"])
def test_a_written_value_changes_the_logits_as_a_graph_does(named, how):
    _, lens, batch = named
    for site, layer in [*first_and_last(lens, batch), ("llm.attention.mask", 1)]:
        if lens.architecture.place(site).fixed:
            continue
        graph = change.at(site) if layer is None else change.at(site, layers=layer)
        expected = lens.run(graph, batch, logits=True).logits[0]
        with torch.no_grad(), lens.trace(batch):
            here = at(lens, site, layer)
            if how == "assigned":
                here.value = changed(here.value)
            else:
                value = here.value
                value[:] = changed(value)
            logits = lens["llm.logits"].value.save()
        assert torch.equal(logits, expected), (site, layer)


GENERATED: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@pytest.mark.parametrize("name", ["llava_next", "opt", "qwen2_5_vl"])
def test_in_a_generation_it_is_that_of_the_step(name):
    lens, batch = lens_of(name), batch_of(name)
    out = lens.generate(keep.at("llm.mlp.act", layers=2, steps="all", all_beams=True), batch, **GENERATED)
    expected = out["keep", "llm.mlp.act"][0]
    found = []
    with lens.trace_generation(batch, **GENERATED) as tracer:
        for _ in tracer.iter[:3]:
            found.append(lens["llm.mlp.act"][2].value.detach().clone())
    # One layer was asked for: each step is that layer.
    steps = [step[0] if step.ndim == found[0].ndim + 1 else step for step in expected]
    assert len(steps) == len(found)
    for one, other in zip(found, steps, strict=True):
        assert one.shape[0] == 2 * batch.rows
        assert torch.equal(one, other)


def test_weights_of_attention_are_read_only():
    lens = lens_of("embedded/llava-next", "eager")
    batch = lens.encode(pictures((40, 56)), ["why"])
    for site in ("llm.attention.pattern", "vision.attention.pattern"):
        expected = lens.run(keep.at(site), batch)["keep", site][0]
        with lens.trace(batch):
            value = lens[site][1].value.save()
        assert torch.equal(value, expected[1])
    torch.testing.assert_close(
        traced_gradient(lens, batch, "llm.attention.pattern", 1),
        plain_gradient(lens, batch, "llm.attention.pattern", 1),
    )
    said = r'lens\["llm.attention.pattern"\]\[1\].value cannot be written: the weights are returned beside the output'
    with pytest.raises(ValueError, match=said), lens.trace(batch):
        lens["llm.attention.pattern"][1].value = torch.zeros(1)
    with pytest.raises(ValueError, match=said), torch.no_grad(), lens.trace(batch):
        lens["llm.attention.pattern"][1].value[:] = 0


def test_two_views_of_one_module_are_edited_apart():
    """Queries, keys and values of a fused projection; read twice, it is one tensor."""
    lens, batch = lens_of("qwen2_vl"), batch_of("qwen2_vl")
    graph = change.at("vision.attention.q", layers=0) | change.at("vision.attention.v", layers=0)
    expected = lens.run(graph, batch, logits=True).logits[0]
    with torch.no_grad(), lens.trace(batch):
        lens["vision.attention.q"][0].value[:] = changed(lens["vision.attention.q"][0].value)
        value = lens["vision.attention.v"][0].value
        value *= 0.5
        lens["vision.attention.v"][0].value += 0.25
        logits = lens["llm.logits"].value.save()
    assert torch.equal(logits, expected)


def test_in_a_session_and_an_invoke_and_a_scan():
    lens, batch = lens_of("qwen2_5_vl"), batch_of("qwen2_5_vl")
    expected = lens.run(keep.at(["vision.mlp.act", "llm.norm"]), batch)
    with lens.session():
        with lens.trace(batch):
            one = lens["vision.mlp.act"][1].value.save()
        with lens.trace() as tracer:  # noqa: SIM117
            with tracer.invoke(**batch.inputs):
                two = lens["vision.mlp.act"][1].value.save()
                norm = lens["llm.norm"].value.save()
    assert torch.equal(one, expected["keep", "vision.mlp.act"][0][1])
    assert torch.equal(two, one)
    assert torch.equal(norm, expected["keep", "llm.norm"][0])


def test_rows_of_two_invokes_of_text():
    lens = lens_of("llava_next")
    one, two = (lens.encode(None, [text]) for text in ("one", "two"))
    found = {}
    with torch.no_grad(), lens.trace() as tracer:
        with tracer.invoke(one.inputs["input_ids"]):
            value = lens["llm.attention.z"][1].value
            value[:] = changed(value)
            found["one"] = lens["llm.logits"].value.clone()
        with tracer.invoke(two.inputs["input_ids"]):
            found["two"] = lens["llm.logits"].value.clone()
    expected = lens.run(change.at("llm.attention.z", layers=1), one, logits=True).logits[0]
    torch.testing.assert_close(found["one"], expected)
    torch.testing.assert_close(found["two"], lens.run(keep.at("llm.norm"), two, logits=True).logits[0])
    packed = lens_of("qwen2_vl")
    ids = packed.encode(None, ["one"]).inputs["input_ids"]

    def read_flattened() -> None:
        with packed.trace() as tracer:
            with tracer.invoke(ids):
                _ = packed["vision.mlp.act"][1].value
            with tracer.invoke(ids):
                pass

    with pytest.raises(ValueError, match=r"value has the rows of all invokes in one; give the model one batch"):
        read_flattened()


def test_what_cannot_be_read_or_written_is_said():
    lens, batch = lens_of("llava_next"), batch_of("llava_next")
    with pytest.raises(ValueError, match=r'lens\["llm.norm"\].value exists while the model runs: write it inside'):
        _ = lens["llm.norm"].value

    def read_late() -> None:
        with lens.trace(batch):
            _ = lens["llm.norm"].value
            _ = lens["llm.mlp.act"][2].value

    with pytest.raises(ValueError, match=r"\[2\].value: the model already ran past it, or this batch does not reach"):
        read_late()
    with pytest.raises(ValueError, match=r"value is a tensor \[2, \d+, 48\], not \[3\]"), lens.trace(batch):
        lens["llm.mlp.act"][2].value = torch.zeros(3)
    with pytest.raises(ValueError, match="not float"), lens.trace(batch):
        lens["llm.mlp.act"][2].value = 0.0

    def read_backwards() -> None:
        with lens.trace(batch):
            loss = lens["llm.logits"].value.sum()
            with loss.backward():
                _ = lens["llm.mlp.act"][2].value

    with pytest.raises(ValueError, match=r"value is of the forward: read it before `with loss.backward\(\):`"):
        read_backwards()
    with pytest.raises(KeyError, match=r"Did you mean 'llm.mlp.act'"):
        _ = lens["llm.mlp.acts"]


def test_an_envoy_is_still_an_envoy():
    lens, batch = lens_of("llava_next"), batch_of("llava_next")
    here = lens["llm.residual"][-1]
    assert here.path == lens.nnsight.model.language_model.layers[2].path
    assert repr(here).startswith('lens["llm.residual"][2]: LlamaDecoderLayer(')
    with torch.no_grad(), lens.trace(batch):
        inner = here.mlp.act_fn.output.save()
        hidden = here.output.save()
        again = lens["llm.norm"](hidden).save()
        last = lens["llm.norm"].output.save()
        lens["llm.norm"].output = last * 0
        logits = lens["llm.logits"].output.save()
    assert inner.shape[-1] == 48
    assert torch.equal(again, last)
    assert not logits.any()
