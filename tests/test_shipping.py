"""What travels is plain, and what cannot travel is refused by name before anything is sent."""

from __future__ import annotations

import decimal
import io
import pickle
import types

import pytest
import torch
from conftest import mixed_batch
from jaxtyping import Float
from nnsight.intervention import serialization

from interventions import (
    add_vector,
    batch_field,
    count_active,
    count_active_by_kind,
    keep,
    knock_out_attention,
    logit_lens,
    patch_activations,
    per_layer,
    reads,
    zero_neurons,
)
from mmneuron_lens.runtime.shipping import _modules, bare, refuse_unshippable
from mmneuron_lens.wire.describe import describe
from mmneuron_lens.wire.job import run_job

MASK = torch.arange(3 * 48).reshape(3, 48) % 3 == 0


def test_bare_functions_have_no_annotations_all_the_way_down():
    shipped = bare(count_active)
    assert shipped.__annotations__ == {}
    assert shipped.__globals__["_count"].__annotations__ == {}
    assert set(shipped.__globals__) == {"__builtins__", "__name__", "_count"}
    act, weight = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)
    assert torch.equal(shipped(act, weight), count_active(act, weight))


def annotations_sent(value, monkeypatch):
    """What nnsight sends of every function's annotations, by its name; and the modules that the payload asks for."""
    sent = {}
    genuine = serialization.CustomCloudPickler._dynamic_function_reduce

    def reduce(self, function):
        sent[function.__name__] = function.__annotations__
        return genuine(self, function)

    monkeypatch.setattr(serialization.CustomCloudPickler, "_dynamic_function_reduce", reduce)
    payload = serialization.dumps(value)
    refuse_unshippable(payload)
    return sent, _modules(payload)


@pytest.mark.parametrize("entry", [run_job, describe])
def test_annotated_functions_of_the_wire_travel_without_annotations_and_types(entry, monkeypatch):
    assert entry.__annotations__
    sent, modules = annotations_sent(bare(entry), monkeypatch)
    assert entry.__name__ in sent
    if entry is run_job:
        assert {"serve", "take", "pack", "forward_in_parts", "lay_out", "merge", "decode"} <= set(sent)
    assert not any(sent.values())
    assert not any(module.startswith(("mmneuron_lens", "interventions", "jaxtyping")) for module in modules)


def test_annotated_functions_that_one_closes_over_travel_without_them(monkeypatch):
    def halve(value, times):
        return value if times == 0 else halve(value / 2, times - 1)

    # As in a notebook, where annotations are no strings.
    halve.__annotations__ = {"value": Float[torch.Tensor, "..."]}

    def quartered(act):
        return halve(act, 2)

    assert torch.equal(bare(quartered)(torch.ones(3)), torch.full((3,), 0.25))
    sent, modules = annotations_sent(bare(quartered), monkeypatch)
    assert sent == {"quartered": {}, "halve": {}}
    assert "jaxtyping" not in modules


def test_interventions_that_a_function_calls_become_functions():
    def twice(act, weight):
        return 2 * count_active(act, weight)

    globals_of = {"count_active": count_active, "__builtins__": __builtins__}
    twice = types.FunctionType(twice.__code__, globals_of, "twice")
    shipped = bare(twice)
    assert isinstance(shipped.__globals__["count_active"], types.FunctionType)
    act, weight = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)
    assert torch.equal(shipped(act, weight), 2 * count_active(act, weight))


def test_a_module_that_a_server_lacks_is_refused_by_name(lens):
    import scipy.special

    scope: dict = {"special": scipy.special, "torch": torch}
    exec("def smooth(act):\n    return torch.as_tensor(special.expit(act.numpy()))", scope)
    smooth = reads("llm.mlp.act", over="list")(scope["smooth"])
    with pytest.raises(ValueError, match=r"smooth uses scipy\.special, which an NDIF server does not have"):
        bare(smooth)


def test_classes_that_a_server_lacks_are_found_without_loading_the_payload():
    import pickle

    from scipy.spatial.transform import Rotation

    with pytest.raises(ValueError, match=r"The job needs scipy\.spatial"):
        refuse_unshippable(pickle.dumps({"a": [Rotation.identity(), decimal.Decimal(1)]}))
    refuse_unshippable(pickle.dumps({"a": [decimal.Decimal(1), torch.float32]}))


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 5, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}]
)
def test_the_travelling_form_computes_the_same(lens, settings):
    batch = mixed_batch(lens)
    image, text = batch.fields["llm"]["kind"][..., 0], batch.fields["llm"]["kind"][..., 1]
    graph = (
        zero_neurons.bind(neurons=per_layer(MASK))
        | count_active_by_kind.at("*.act")
        | add_vector.bind(vector=torch.ones(32)).at(layers=1, positions="image")
        | knock_out_attention.bind(queries=text, keys=image).at(steps="prompt")
        | logit_lens
        | count_active.at(steps="all").named("all")
    )
    do = lens.generate if settings else lens.run
    one, other = do(graph, [batch, batch], **settings), do(graph, [batch, batch], remote="local", **settings)
    assert one.text == other.text
    assert set(one) == set(other)
    for key, value in one.items():
        if key[0] == "logit_lens":
            assert all(torch.equal(a["entropy"], b["entropy"]) for a, b in zip(value, other[key], strict=True))
        else:
            assert torch.equal(value, other[key]), key


def test_rewires_and_own_fields_travel(lens):
    batch, source = mixed_batch(lens), mixed_batch(lens)
    mark = torch.arange(batch.inputs["input_ids"].numel()).reshape(batch.inputs["input_ids"].shape) % 2
    batch = batch.with_fields(mark=mark)
    graph = patch_activations.at(layers=1, positions=-1) | count_active.bind(weight=batch_field("mark")) | keep
    one = lens.run(graph, batch, sources=source, logits=True)
    other = lens.run(graph, batch, sources=source, logits=True, remote="local")
    assert torch.equal(one.logits[0], other.logits[0])
    assert torch.equal(one["count_active", "llm.mlp.act"], other["count_active", "llm.mlp.act"])


def test_images_travel_as_their_own_files(lens, tmp_path):
    from conftest import pictures

    path = tmp_path / "picture.jpg"
    pictures((200, 200))[0].save(path, quality=60)
    batch = lens.encode([path], ["is it red?"])
    assert batch.travelling()["images"] == [[path.read_bytes()]]


class Loading(pickle.Unpickler):
    """Remembers the modules that it was asked for."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(io.BytesIO(payload))
        self.modules: set[str] = set()

    def find_class(self, module, name):
        self.modules.add(module)
        return super().find_class(module, name)


def test_the_modules_of_a_payload_are_those_that_loading_it_imports():
    # A pickle is cut into frames at 64 KiB; for some of these lengths the cut falls between a module and its name.
    for length in range(2**16 - 80, 2**16 + 20):
        value = ["x" * length, decimal.Decimal, types.SimpleNamespace, decimal.Context]
        payload = pickle.dumps(value, protocol=4)
        loading = Loading(payload)
        assert loading.load() == value
        assert _modules(payload) == loading.modules == {"decimal", "types"}, length
