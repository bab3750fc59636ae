"""Path patching against plain hooks that freeze every component but the sender and the receiver."""

from __future__ import annotations

from contextlib import ExitStack

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures

from interventions import keep
from interventions.errors import InvalidType, InvalidValue, OutOfRange, UnknownName
from mmneuron_lens import Lens
from mmneuron_lens.experiments.path_patch import Component, patch_path

DIMENSION = 8


@pytest.fixture(params=["llama", "gemma2"])
def path_lens(request) -> Lens:
    """A Llama, and a decoder with norms behind its layers."""
    if request.param == "llama":
        return Lens.wrap(*tiny_models.llava_next())
    config = newer_models.text_config("Gemma2Config", 101, sliding_window=256, query_pre_attn_scalar=8)
    return Lens.wrap(*tiny_models.on("llava_next", config))


def pair(lens):
    texts = ["is it red?", "is it low?"]
    clean, source = (lens.encode(pictures((32, 32), (32, 32), seed=seed), texts) for seed in (1, 2))
    return clean, source


class Hooks(ExitStack):
    """Hooks on modules by path, for as long as it is open."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def output(self, path, change):
        """`change(output)` returns a new tensor or None."""

        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            new = change(value)
            return None if new is None else (new, *output[1:]) if isinstance(output, tuple) else new

        self.callback(self.module.get_submodule(path).register_forward_hook(hook).remove)

    def input(self, path, change):
        handle = self.module.get_submodule(path).register_forward_pre_hook(
            lambda _module, inputs: (change(inputs[0]),) if change(inputs[0]) is not None else None
        )
        self.callback(handle.remove)


def expected_logits(lens, clean, source, sender, receiver):
    """Freeze by hand: all that attention and MLPs give is the clean run's, but for the sender and the receiver."""
    layers = [f"model.language_model.layers.{layer}" for layer in range(lens.architecture.place("llm.residual").layers)]
    parts = [f"{layer}.{part}" for layer in layers for part in ("self_attn", "mlp")]

    def run(hooks, batch):
        with torch.no_grad():
            return hooks.module(**batch.inputs).logits

    kept, theirs = {}, {}
    with Hooks(lens.module) as hooks:
        for path in parts:
            hooks.output(path, lambda value, path=path: kept.__setitem__(path, value))
        run(hooks, clean)
    with Hooks(lens.module) as hooks:
        for path in parts:
            hooks.output(path, lambda value, path=path: theirs.__setitem__(path, value))
        for layer in layers:
            hooks.input(f"{layer}.self_attn.o_proj", lambda z, layer=layer: theirs.__setitem__(f"{layer} z", z))
        run(hooks, source)

    sending = f"{layers[sender.layer]}.{'mlp' if sender.site == 'llm.mlp.out' else 'self_attn'}"
    seen = {}
    with Hooks(lens.module) as hooks:
        for path in parts:
            if path != sending:
                hooks.output(path, lambda _value, path=path: kept[path])
        if sender.head is None:
            hooks.output(sending, lambda _value: theirs[sending])
        else:
            part = slice(sender.head * DIMENSION, (sender.head + 1) * DIMENSION)

            def patched(z):
                z = z.clone()
                z[..., part] = theirs[f"{layers[sender.layer]} z"][..., part]
                return z

            hooks.input(f"{sending}.o_proj", patched)
        if receiver is None:
            return run(hooks, clean)
        letter = receiver.site[-1]
        mlp = receiver.site == "llm.mlp.out"
        at = f"{layers[receiver.layer]}.{'mlp.down_proj' if mlp else f'self_attn.{letter}_proj'}"
        hooks.output(at, lambda value: seen.__setitem__("value", value.clone()))
        run(hooks, clean)

    def put(value):
        if mlp:
            return seen["value"]
        value, part = value.clone(), slice(receiver.head * DIMENSION, (receiver.head + 1) * DIMENSION)
        value[..., part] = seen["value"][..., part]
        return value

    with Hooks(lens.module) as hooks:
        hooks.output(at, put)
        return run(hooks, clean)


PATHS = {
    "head to logits": (Component("llm.attention.z", 0, head=1), None),
    "mlp to logits": (Component("llm.mlp.out", 1), None),
    "last mlp to logits": (Component("llm.mlp.out", 2), None),
    "attention to logits": (Component("llm.attention.out", 1), None),
    "head to query": (Component("llm.attention.z", 0, head=3), Component("llm.attention.q", 2, head=1)),
    "head to key": (Component("llm.attention.z", 0, head=3), Component("llm.attention.k", 1, head=1)),
    "mlp to value": (Component("llm.mlp.out", 0), Component("llm.attention.v", 2, head=0)),
    "mlp to mlp": (Component("llm.mlp.out", 0), Component("llm.mlp.out", 2)),
    "head to the mlp of its layer": (Component("llm.attention.z", 1, head=2), Component("llm.mlp.out", 1)),
}


@pytest.mark.parametrize("ends", PATHS)
def test_a_path_is_what_freezing_all_else_gives(path_lens, ends):
    clean, source = pair(path_lens)
    sender, receiver = PATHS[ends]
    path = patch_path(path_lens, clean, source, sender, receiver)
    found = path_lens.run(path.graph, path.batch, logits=True).logits[0]
    expected = expected_logits(path_lens, clean, source, sender, receiver)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = path_lens.module(**clean.inputs).logits
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_a_path_goes_on_in_graphs_and_generations(path_lens):
    clean, source = pair(path_lens)
    path = patch_path(path_lens, clean, source, *PATHS["mlp to logits"])
    out = path_lens.run(path.graph | keep.at("llm.residual", layers=-1), path.batch)
    plain = path_lens.run(keep.at("llm.residual", layers=-1), clean)
    assert not torch.equal(out["keep", "llm.residual"][0], plain["keep", "llm.residual"][0])
    assert len(path_lens.generate(path.graph, path.batch, max_new_tokens=2).text) == 2


def test_paths_that_lead_nowhere_are_refused(path_lens):
    clean, source = pair(path_lens)
    head, mlp, query = (
        Component("llm.attention.z", 1, 0),
        Component("llm.mlp.out", 1),
        Component("llm.attention.q", 1, 0),
    )
    for sender, receiver in ((mlp, mlp), (mlp, query), (head, query)):
        with pytest.raises(InvalidValue, match=r"of layer 1 does not come after .* of layer 1, so no path leads there"):
            patch_path(path_lens, clean, source, sender, receiver)
    with pytest.raises(UnknownName, match=r"Unknown site of a path's end 'llm.residual'"):
        patch_path(path_lens, clean, source, Component("llm.residual", 0))
    with pytest.raises(OutOfRange, match=r"There is no layer 7 at llm.mlp.out; there are 0 to 2"):
        patch_path(path_lens, clean, source, Component("llm.mlp.out", 7))
    with pytest.raises(OutOfRange, match=r"There is no head 4 at llm.attention.z; there are 0 to 3"):
        patch_path(path_lens, clean, source, Component("llm.attention.z", 0, head=4))
    with pytest.raises(InvalidType, match=r"one value for each head; name one, head=0"):
        patch_path(path_lens, clean, source, Component("llm.attention.z", 0))
    with pytest.raises(InvalidType, match="of no one head"):
        patch_path(path_lens, clean, source, Component("llm.mlp.out", 0, head=1))
    longer = path_lens.encode(pictures((32, 32), (32, 32)), ["is it red or not?", "is it low?"])
    with pytest.raises(InvalidValue, match="encode both with as many rows"):
        patch_path(path_lens, clean, longer, mlp)
