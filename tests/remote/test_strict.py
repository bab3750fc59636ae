"""Every built-in intervention and functions of a notebook, executed by ndif's own code where our packages are absent.

A job's bytes are made as for a server and run in a second process; what comes back equals a local run exactly.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import pytest
import torch
from built_in import BUILT_IN, NEURONS, OF_ANSWER, SOURCED, bound
from conftest import mixed_batch, pictures, tiny_lens
from equality import assert_same_results
from jaxtyping import Bool, Float, Int
from strict_client import NO_ENVIRONMENT, URL, StrictServer, environment_is_there
from torch import Tensor

import interventions
from interventions import (
    Intervention,
    batch_field,
    count_active,
    integrated_gradients,
    keep,
    module,
    per_layer,
    reads,
    value_of,
    writes,
    zero_neurons,
)
from mmneuron_lens import Lens
from mmneuron_lens.experiments.fit_jacobian import fit_jacobian_lens
from mmneuron_lens.experiments.fit_tuned import fit_tuned_lens
from mmneuron_lens.runtime.remote import RemoteFailed

pytestmark = pytest.mark.skipif(not environment_is_there(), reason=NO_ENVIRONMENT)

NAMES = ("llava_next", "instructblip")
GENERATION = {"num_beams": 5, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


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


def both(pair, graph, *, batches=2, sources=None, **settings):
    local, client = pair
    batch = mixed_batch(client)
    shape = tuple(batch.inputs["input_ids"].shape)
    mark = torch.arange(batch.inputs["input_ids"].numel()).reshape(shape) % 2
    batch = batch.with_fields(mark=mark, answer=6 * mark - 1, draw=mark)
    batch = batch.with_fields(difference=torch.ones(*shape, 32), given=torch.ones(*shape, 4, 8))
    some = [batch] * batches
    given = None if sources is None else [mixed_batch(client)] * batches
    kind = "generate" if "max_new_tokens" in settings else "run"
    one = getattr(local, kind)(graph, some, sources=given, **settings)
    other = getattr(client, kind)(graph, some, sources=given, remote=URL, **settings)
    assert_same_results(one, other)
    return one


@reads("llm.attention.q", over="list")
def keep_other(value: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return other


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(pair, name):
    graph = bound(name) if name != "knock_out_attention" else knock_out(pair[1])
    out = both(pair, graph | keep.named("after"), logits=True, sources="yes" if name in SOURCED else None)
    assert out.logits


def test_values_of_other_sites_and_gradients_along_a_line(pair):
    local, client = pair
    given = keep_other.at("llm.attention.q")
    both(
        pair,
        given.bind(other=value_of("llm.residual")).named("later")
        | given.bind(other=value_of("projector.output")).named("once")
        | given.bind(other=value_of(source=True)).named("source"),
        sources="yes",
    )
    images, questions, answers = pictures((40, 56), (64, 30)), ["what?", "what is it?"], ["yes it is", "no"]
    batch = client.encode(images, questions, answers)
    baseline = client.encode([image.transpose(0) for image in images], questions, answers)
    read = integrated_gradients.bind(gradient=OF_ANSWER)
    graph = read | read.at("llm.embedding").named("start")
    here, there = (
        lens.run_between(graph, batch, baseline, steps=3, **where)
        for lens, where in ((local, {}), (client, {"remote": URL}))
    )
    assert_same_results(here, there)


def test_lenses_that_were_fitted_here(pair):
    local = pair[0]
    batch = mixed_batch(local)
    jacobian = fit_jacobian_lens(local, batch, skip=0)
    tuned = fit_tuned_lens(local, batch, held_out=mixed_batch(local), steps=2)
    out = both(pair, interventions.logit_lens | jacobian.bound(local) | tuned.bound(local), logits=True)
    last = [out[name, "llm.residual"][0]["entropy"][-1] for name in ("logit_lens", "jacobian_lens", "tuned_lens")]
    assert torch.equal(last[0], last[1])
    assert torch.equal(last[0], last[2])


def knock_out(client):
    batch = mixed_batch(client)
    kind = batch.fields["llm"]["kind"]
    return interventions.knock_out_attention.bind(queries=kind[..., 1], keys=kind[..., 0])


def test_every_site_of_activations_generation_with_beams_and_what_follows_it(pair):
    graph = zero_neurons.bind(neurons=per_layer(NEURONS)) | count_active.at("*.act", steps="prompt")
    out = both(pair, graph | count_active.at(steps="all").named("all") | knock_out(pair[1]), logits=True, **GENERATION)
    assert len(out.text) == 6


# What people write in a notebook: real annotations, helpers, closures, lambdas, defaults.


def softened(value: Float[Tensor, "*where neuron"], slope: float) -> Float[Tensor, "*where neuron"]:
    return torch.nn.functional.softplus(value * slope) / math.log(2)


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def soft_count(
    act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"], slope: float = 2.0
) -> Float[Tensor, " neuron"]:
    return (softened(act, slope) * weight[..., None]).flatten(0, -2).sum(0)


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"), mark=batch_field("mark"))
def marked(
    act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"], mark: Int[Tensor, "*where"]
) -> Int[Tensor, " neuron"]:
    return count_active(act, weight * mark)


@reads("llm.residual", over="list", unembed=module("llm.norm", "llm.unembed"))
def nested(hidden, unembed):
    def best(logits: Float[Tensor, "*where word"]) -> Int[Tensor, "*where"]:
        return logits.argmax(-1)

    ranked = [best(unembed(hidden[:, index])) for index in (0, -1)]
    return {"first": ranked[0], "both": torch.stack([one + 1 for one in ranked])}


def closure(factor: float) -> Intervention:
    @writes("llm.mlp.act")
    def times(act: Float[Tensor, "*where neuron"]) -> Float[Tensor, "*where neuron"]:
        return act * factor

    return times


def first_of(size: int) -> Intervention:
    chosen: Bool[Tensor, " neuron"] = torch.arange(48) < size
    act = writes("llm.mlp.act")
    return act(lambda act: act.masked_fill(chosen, 0)).named("first_of")


def by_partial() -> Intervention:
    def shift(act, amount):
        return act + amount

    return writes("llm.mlp.act")(shift).bind(amount=functools.reduce(max, [0.1, 0.5]))


FROM_A_NOTEBOOK = {
    "real annotations, a helper and math": soft_count,
    "calls a built-in, own field": marked,
    "nested functions, a comprehension, a module of the model": nested.at(layers=(0, 2)),
    "a closure over a number": closure(0.5),
    "a lambda closing over a tensor": first_of(7),
    "a bound argument": by_partial(),
}


@pytest.mark.parametrize("name", FROM_A_NOTEBOOK)
def test_from_a_notebook(pair, name):
    out = both(pair, FROM_A_NOTEBOOK[name] | keep.named("after"), logits=True)
    assert out.logits


def test_functions_defined_in_main(pair):
    scope = {"__name__": "__main__", "torch": torch, "reads": reads, "Float": Float, "Tensor": Tensor}
    exec(
        "def half(x: Float[Tensor, '...']):\n    return x / 2\n\n"
        "@reads('llm.residual', over='list')\n"
        "def halved(hidden: Float[Tensor, '*where hidden']) -> Float[Tensor, '*where hidden']:\n"
        "    return half(hidden).square()\n",
        scope,
    )
    both(pair, scope["halved"])


def test_an_error_there_names_the_message(pair, monkeypatch):
    from mmneuron_lens.runtime import remote

    @reads("llm.mlp.act", over="list")
    def broken(act):
        return act[..., :3] @ torch.ones(5)

    monkeypatch.setattr(remote, "check_plans", lambda *given: None)
    with pytest.raises(RemoteFailed, match="error RuntimeError: size mismatch"):
        pair[1].run(broken, mixed_batch(pair[1]), remote=URL)


def test_bytes_down_do_not_grow_with_batches(pair, place):
    client = pair[1]
    batch = mixed_batch(client)
    sizes = []
    for count in (1, 4):
        client.run(count_active.at("*.act"), [batch] * count, remote=URL)
        sizes.append(place.server.received[-1])
    assert sizes[0] == sizes[1]


def test_nothing_needs_to_be_registered(pair, monkeypatch):
    """`nnsight.register` is not needed: no module of ours is shipped by value, and the job runs all the same."""
    import cloudpickle.cloudpickle as registry
    import nnsight.ndif

    monkeypatch.setattr(nnsight.ndif, "_PULLED_ENV", True)
    monkeypatch.setattr(registry, "_PICKLE_BY_VALUE_MODULES", set())
    both(pair, soft_count | marked | count_active)
    assert set() == registry._PICKLE_BY_VALUE_MODULES
