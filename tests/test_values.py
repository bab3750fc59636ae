"""Values of other sites, and of the source batch: equal to what reads there keep, in every kind of run."""

from __future__ import annotations

from functools import cache
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures

from interventions import keep, patch_activations, per_layer, reads, value_of, writes, zero_neurons
from interventions.errors import InvalidType, InvalidValue, UnknownName
from mmneuron_lens import Lens

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

QUESTIONS = ("Is it red?", "how many cars are there?")
BEAMS: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@cache
def lens_of(name: str) -> Lens:
    models = tiny_models if name == "llava_next" else newer_models
    return Lens.wrap(*getattr(models, name)())


@reads("llm.residual", over="list")
def both(value: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"value": value, "other": other}


@writes("llm.mlp.out")
def plus(value: torch.Tensor, other: torch.Tensor, times: float = 1.0) -> torch.Tensor:
    return value + times * other


def layers_of(lens: Lens, site: str) -> int | None:
    return lens.architecture.place(site).layers


@pytest.mark.parametrize("name", newer_models.ARCHITECTURES)
def test_every_site_is_given_at_every_other_that_has_its_layers(name):
    lens = lens_of(name)
    batch = lens.encode(pictures((40, 56), (64, 30)), QUESTIONS)
    sites = [site for site in lens.sites if not site.endswith("pattern")]
    kept = lens.run(keep.at(sites), batch)
    # Of each site, one read earlier and one later than it, of its stack of layers and of none.
    for here in (
        "vision.attention.z",
        "vision.residual",
        "llm.attention.q",
        "llm.mlp.post",
        "llm.residual",
        "llm.norm",
    ):
        if here not in sites:
            continue
        stack = here.partition(".")[0]
        others = [
            site
            for site in sites
            if site != here
            and (layers_of(lens, site) is None or (layers_of(lens, here) and site.startswith(f"{stack}.")))
        ]
        graph = keep.at(here).named("alone")
        for other in others:
            graph = graph | both.at(here).bind(other=value_of(other)).named(other)
        out = lens.run(graph, batch)
        for other in others:
            value, given = out[other, here][0]["value"], out[other, here][0]["other"]
            assert torch.equal(value, kept["keep", here][0])
            expected = kept["keep", other][0]
            if layers_of(lens, other) is None and layers_of(lens, here) is not None:
                expected = expected.expand(given.shape)
            assert torch.equal(given, expected), (here, other)


def test_what_is_given_is_what_the_model_goes_on_with():
    lens = lens_of("llava_next")
    batch = lens.encode(pictures((40, 56), (64, 30)), QUESTIONS)
    place = lens.architecture.place("llm.mlp.act")
    neurons = torch.arange(place.layers * place.sizes["neuron"]).reshape(place.layers, -1) % 2 == 0
    zeroing = zero_neurons.bind(neurons=per_layer(neurons))
    read = both.at("llm.attention.z").bind(other=value_of("llm.mlp.act"))
    out = lens.run(keep.at("llm.mlp.act").named("before") | zeroing | keep.at("llm.mlp.act") | read, batch)
    assert torch.equal(out["both"][0]["other"], out["keep"][0])
    assert not torch.equal(out["both"][0]["other"], out["before"][0])


def test_a_write_takes_what_came_before_it_and_refuses_what_comes_later():
    lens = lens_of("llava_next")
    batch = lens.encode(pictures((40, 56), (64, 30)), QUESTIONS)
    out = lens.run(plus.bind(other=value_of("llm.attention.out"), times=2.0) | keep.at("llm.mlp.out"), batch)
    # By plain hooks.
    layers, held = lens.module.model.language_model.layers, []
    handles, seen = [], []
    for layer in layers:
        handles.append(layer.self_attn.register_forward_hook(lambda m, i, o: held.append(o[0])))
        handles.append(layer.mlp.register_forward_hook(lambda m, i, o: o + 2.0 * held[-1]))
        handles.append(layer.mlp.register_forward_hook(lambda m, i, o: seen.append(o)))
    with torch.no_grad():
        lens.module(**batch.inputs)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(out["keep"][0], torch.stack(seen), rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidValue, match=r"llm\.residual comes after llm\.mlp\.out, so a write there cannot"):
        lens.run(plus.bind(other=value_of("llm.residual")), batch)


@pytest.mark.parametrize("steps", ["prompt", "all", "generated", (1, 3)])
@pytest.mark.parametrize("all_beams", [False, True])
def test_generations(steps, all_beams):
    lens = lens_of("llava_next")
    batch = lens.encode(pictures((40, 56), (64, 30)), QUESTIONS)
    read = both.at("llm.attention.q", steps=steps, all_beams=all_beams)
    later, once = read.bind(other=value_of("llm.residual")), read.bind(other=value_of("projector.output")).named("once")
    there = keep.at("llm.residual", steps=steps, all_beams=all_beams)
    out = lens.generate(later | once | there | keep.at("projector.output").named("projected"), batch, **BEAMS)
    given, images = out["both"][0], out["once"][0]
    # Read as they are generated, steps come one by one.
    given, images = ([one] if isinstance(one, dict) else one for one in (given, images))
    kept = out["keep"][0] if isinstance(out["keep"][0], list) else [out["keep"][0]]
    assert len(given) == len(kept) == len(images) > 0
    for one, expected, image in zip(given, kept, images, strict=True):
        assert torch.equal(one["other"], expected)
        assert torch.equal(image["other"][0], out["projected"][0])


def test_positions_narrow_what_has_the_same_positions_and_leave_the_rest_whole():
    lens = lens_of("llava_next")
    batch = lens.encode(pictures((40, 56), (64, 30)), QUESTIONS)
    kept = lens.run(keep.at(["llm.attention.z", "llm.norm", "projector.output"]), batch)
    for positions, index in ((-1, (slice(None), [-1])), ("image", batch.fields["llm"]["kind"][..., 0])):
        read = both.at("llm.attention.q", layers=[1], positions=positions)
        graph = (
            read.bind(other=value_of("llm.attention.z")).named("layered")
            | read.bind(other=value_of("llm.norm")).named("once")
            | read.bind(other=value_of("projector.output")).named("elsewhere")
        )
        out = lens.run(graph, batch)
        assert torch.equal(out["layered"][0]["other"][0], kept["keep", "llm.attention.z"][0][1][index])
        assert torch.equal(out["once"][0]["other"][0], kept["keep", "llm.norm"][0][index])
        assert torch.equal(out["elsewhere"][0]["other"][0], kept["keep", "projector.output"][0])


def test_the_source_batch_gives_reads_and_writes_its_values():
    lens = lens_of("llava_next")
    images = pictures((40, 56), (40, 56))
    batch, source = (lens.encode([image], [QUESTIONS[0]]) for image in images)
    there = lens.run(keep.at(["llm.residual", "llm.mlp.act", "llm.norm"]), source)
    # A read: the same site, another one, and one without layers.
    graph = (
        both.bind(other=value_of(source=True))
        | both.bind(other=value_of("llm.norm", source=True)).named("norm")
        | both.at("llm.attention.q", positions=[0, -1]).bind(other=value_of("llm.mlp.act", source=True)).named("act")
    )
    out = lens.run(graph, batch, sources=source)
    assert torch.equal(out["both"][0]["other"], there["keep", "llm.residual"][0])
    assert torch.equal(out["norm"][0]["other"][0], there["keep", "llm.norm"][0])
    assert torch.equal(out["act"][0]["other"], there["keep", "llm.mlp.act"][0][:, :, [0, -1]])
    # A write that takes a source's value is what a rewire does.
    place = lens.architecture.place("llm.residual")

    @writes("llm.residual")
    def exchanged(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return other

    written = exchanged.bind(other=value_of(source=True)).at(layers=[place.layers - 2], positions="image")
    rewired = patch_activations.at(layers=[place.layers - 2], positions="image")
    one, other = (
        lens.run(graph | keep.at("llm.norm"), batch, sources=source)["keep"][0] for graph in (written, rewired)
    )
    assert torch.equal(one, other)
    beams = [
        lens.generate(graph, batch, sources=source, **BEAMS).tokens for graph in (written.at(steps="prompt"), rewired)
    ]
    assert torch.equal(beams[0][0], beams[1][0])


def test_packed_and_shared_batches():
    for name in ("llava_next", "paligemma"):
        lens = lens_of(name)
        images = pictures((40, 56), (64, 30))
        packed = lens.pack([([images[0]], ["what?", "what is it?"]), ([images[1]], ["who?"])])
        out = lens.run(
            both.at("llm.attention.q").bind(other=value_of("llm.residual")) | keep | keep.at("llm.norm").named("n"),
            packed,
        )
        assert torch.equal(out["both"][0]["other"], out["keep"][0])


REFUSED = {
    "itself": (lambda lens, b: lens.run(both.bind(other=value_of("llm.residual")), b), InvalidValue, "leave it out"),
    "no site": (lambda lens, b: value_of(), InvalidValue, "names no site"),
    "a strange site": (lambda lens, b: value_of("llm.neurons"), UnknownName, "Unknown site 'llm.neurons'"),
    "another stack": (
        lambda lens, b: lens.run(both.bind(other=value_of("vision.residual")), b),
        InvalidValue,
        "is not in that stack",
    ),
    "layers where there are none": (
        lambda lens, b: lens.run(both.at("llm.norm").bind(other=value_of("llm.residual")), b),
        InvalidValue,
        "llm.norm has no layers",
    ),
    "no sources": (
        lambda lens, b: lens.run(both.bind(other=value_of(source=True)), b),
        InvalidType,
        "give the paired batches",
    ),
    "a source of another shape": (
        lambda lens, b: lens.run(both.bind(other=value_of(source=True)), b, sources=lens.encode(None, ["a", "b"])),
        InvalidValue,
        "the source batch has shape",
    ),
    "attention that is not computed": (
        lambda lens, b: lens.run(both.bind(other=value_of("llm.attention.pattern")), b),
        InvalidValue,
        "exists with eager attention only",
    ),
    "no image": (
        lambda lens, b: lens.run(both.bind(other=value_of("projector.output")), lens.encode(None, ["a"])),
        UnknownName,
        "projector.output is never reached",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_given_is_refused(name):
    call, kind, said = REFUSED[name]
    lens = lens_of("llava_next")
    with pytest.raises(kind, match=said):
        call(lens, lens.encode(pictures((40, 56), (64, 30)), QUESTIONS))
