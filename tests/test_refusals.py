"""What the language cannot do is refused by name: by `check`, before the model runs, and before anything is sent."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy
import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens
from fake_ndif import FakeNdif

from interventions import (
    Graph,
    Intervention,
    batch_field,
    count_active,
    keep,
    load_graph,
    logit_lens,
    mean_ablate_neurons,
    module,
    patch_activations,
    per_layer,
    save_graph,
    writes,
    zero_neurons,
)
from interventions.errors import InvalidType, InvalidValue, MMNeuronError, OutOfRange, UnknownName

LLM = torch.ones(3, 48, dtype=torch.bool)
VISION = torch.ones(3, 40, dtype=torch.bool)
NEW = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@writes("llm.mlp.act")
def halve(act):
    return act / 2


def masked(values, site=None):
    one = zero_neurons if site is None else zero_neurons.at(site)
    return one.bind(neurons=per_layer(values))


# By what is wrong: how the graph is made, the error, its text. The batch has 81 columns, 3 layers everywhere.
ALWAYS = {
    "a key that is no site": (
        lambda: masked({"llm.mlp.acts": LLM}),
        (UnknownName, r"per_layer: Unknown site 'llm\.mlp\.acts'\. Did you mean 'llm\.mlp\.act'\? Choices: vision"),
    ),
    "only keys where it does not act": (
        lambda: masked({"vision.mlp.act": VISION}),
        (InvalidValue, r"neurons=per_layer\({...}\) has no value for llm\.mlp\.act, where it is to act.*It has vision"),
    ),
    "one key where it does not act": (
        lambda: masked({"llm.mlp.act": LLM, "vision.mlp.act": VISION}),
        (UnknownName, r"has a value for vision\.mlp\.act, where zero_neurons does not act; it acts at llm\.mlp\.act"),
    ),
    "a key that this architecture lacks": (
        lambda: masked({"llm.mlp.act": LLM, "qformer.query.act": LLM}, "*.act"),
        (UnknownName, r"has a value for qformer\.query\.act, where zero_neurons does not act"),
    ),
    "a site that is named and has no key": (
        lambda: masked({"llm.mlp.act": LLM}, ["llm.mlp.act", "vision.mlp.act"]),
        (InvalidValue, r"has no value for vision\.mlp\.act, where it is to act; add one, or leave the site out"),
    ),
    "moved away from its keys": (
        lambda: masked({"llm.mlp.act": LLM}).at("vision.mlp.act"),
        (InvalidValue, r"has no value for vision\.mlp\.act"),
    ),
    "two bindings by site that do not meet": (
        lambda: mean_ablate_neurons.at("*.mlp.act").bind(
            neurons=per_layer({"llm.mlp.act": LLM, "vision.mlp.act": VISION}),
            mean=per_layer({"llm.mlp.act": torch.zeros(3, 48)}),
        ),
        (UnknownName, r"neurons=per_layer\({...}\) has a value for vision\.mlp\.act, where mean_ablate_neurons"),
    ),
    "another number of layers": (
        lambda: masked({"llm.mlp.act": LLM[:2]}),
        (InvalidValue, r"has shape \[2, 48\]; llm\.mlp\.act has 3 layers, so its first axis must be 3"),
    ),
    "no key at all": (lambda: masked({}), (InvalidValue, r"per_layer\({}\) has no value for any site")),
    "a list for a tensor": (lambda: masked([1]), (InvalidType, "per_layer takes a tensor, or one by site, not list")),
    "an array for a tensor": (
        lambda: masked({"llm.mlp.act": numpy.ones((3, 48))}),
        (InvalidType, r"the value for llm\.mlp\.act is a tensor, not ndarray"),
    ),
    "a field that nobody has": (
        lambda: count_active.bind(weight=batch_field("weigth")),
        (UnknownName, r"the batch has no field 'weigth' there\. Choices: weight, kind"),
    ),
    "a module that is no text": (lambda: logit_lens.bind(unembed=module(3)), (UnknownName, r"Unknown site 3\.")),  # type: ignore[arg-type]
    "a module of every layer": (
        lambda: logit_lens.bind(unembed=module("llm.mlp.act")),
        (InvalidValue, "has one module per layer"),
    ),
    "a glob that means no site": (
        lambda: count_active.at("qformer.*"),
        (UnknownName, r"count_active: 'qformer\.\*' means no site of LLaVA-NeXT.*Choices: vision"),
    ),
    "one glob of two": (
        lambda: count_active.at(["qformer.*.act", "llm.mlp.act"]),
        (UnknownName, r"'qformer\.\*\.act' means no site"),
    ),
    "no site": (lambda: count_active.at([]), (InvalidValue, "No site is named")),
    "a site that is no text": (lambda: count_active.at(3), (InvalidType, "A site is named by its text, not int 3")),
    "a layer below": (lambda: halve.at(layers=-100), (OutOfRange, r"llm\.mlp\.act has layers 0 to 2, not -100")),
    "a layer above": (lambda: halve.at(layers=[0, 99]), (OutOfRange, r"has layers 0 to 2, not 99")),
    "no layer": (lambda: halve.at(layers=[]), (InvalidValue, r"layers=\[\] names nothing")),
    "half a layer": (lambda: halve.at(layers=[1.5]), (InvalidType, "layers takes whole numbers, not float 1.5")),
    "a flag for a layer": (lambda: halve.at(layers=True), (InvalidType, "not bool True")),
    "flags for layers": (lambda: halve.at(layers=torch.tensor([True, False])), (InvalidType, "not Tensor")),
    "text for layers": (lambda: halve.at(layers="12"), (InvalidType, "not str '12'")),
    "a layer twice": (lambda: halve.at(layers=[1, 1]), (InvalidValue, "layers names 1 twice")),
    "a layer from both ends": (
        lambda: halve.at(layers=[2, -1]),
        (InvalidValue, r"layers=\[2, -1\] mean \[2, 2\] at llm\.mlp\.act, one of them twice"),
    ),
    "layers out of order": (
        lambda: keep.at(layers=[2, 1]),
        (InvalidValue, r"layers=\[2, 1\]: results come back in the model's order.*write layers=\[1, 2\]"),
    ),
    "layers from the end out of order": (
        lambda: keep.at(layers=[-1, -2]),
        (InvalidValue, r"write layers=\[-2, -1\]"),
    ),
    "layers from both ends out of order": (
        lambda: keep.at(layers=[2, -3]),
        (InvalidValue, r"layers=\[2, -3\] mean \[2, 0\] at llm\.residual.*write layers=\[0, 2\]"),
    ),
    "layers where there are none": (
        lambda: count_active.at("*.act", layers=0),
        (InvalidValue, r"projector\.act has no layers, so layers=\[0\] mean nothing"),
    ),
    "a position too far": (
        lambda: halve.at(positions=500),
        (OutOfRange, r"halve at llm\.mlp\.act: there is no position 500; there are 0 to 80"),
    ),
    "one position too far": (lambda: keep.at(positions=[1, 81]), (OutOfRange, "there is no position 81")),
    "a position before the first": (lambda: keep.at(positions=-82), (OutOfRange, "there is no position -82")),
    "a position of another module": (
        lambda: halve.at("vision.mlp.act", positions=17),
        (OutOfRange, r"halve at vision\.mlp\.act: there is no position 17; there are 0 to 16"),
    ),
    "a slice behind the last": (
        lambda: keep.at(positions=slice(500, 600)),
        (OutOfRange, "positions 500:600 meet no position; there are 0 to 80"),
    ),
    "an empty slice": (lambda: keep.at(positions=slice(5, 5)), (OutOfRange, "positions 5:5 meet no position")),
    "a slice without a step": (lambda: keep.at(positions=slice(0, 9, 0)), (InvalidValue, "step of a slice is not 0")),
    "a slice of halves": (lambda: keep.at(positions=slice(0.5, 2)), (InvalidType, "not float 0.5")),
    "no position": (lambda: keep.at(positions=[]), (InvalidValue, r"positions=\[\] names nothing")),
    "half a position": (lambda: keep.at(positions=1.0), (InvalidType, "positions takes whole numbers, not float 1.0")),
    "a position twice": (lambda: halve.at(positions=[5, 5]), (InvalidValue, "positions names 5 twice")),
    "a position from both ends": (
        lambda: halve.at(positions=[80, -1]),
        (InvalidValue, r"positions 80, -1 mean \[80, 80\], one of them twice"),
    ),
    "positions where there are none": (
        lambda: keep.at("vision.pooled", positions=1),
        (InvalidValue, r"vision\.pooled \[tile hidden\] has no positions to choose from"),
    ),
    "generated positions of a prompt": (
        lambda: keep.at(positions="generated"),
        (UnknownName, r"no row has 'generated' positions before they are there.*\.at\(steps=\"generated\"\)"),
    ),
    "a step before the prompt": (lambda: halve.at(steps=-1), (InvalidValue, "steps count from 0, the prompt")),
    "no step": (lambda: halve.at(steps=[]), (InvalidValue, r"steps=\[\] names nothing")),
    "a step twice": (lambda: halve.at(steps=[1, 1]), (InvalidValue, "steps names 1 twice")),
    "steps out of order": (lambda: halve.at(steps=[1, 0]), (InvalidValue, r"write steps=\[0, 1\]")),
    "steps of what is reached once": (
        lambda: halve.at("vision.mlp.act", steps="generated"),
        (InvalidValue, r"vision\.mlp\.act is reached once, with the prompt, so steps=generated never come there"),
    ),
    "a rewire of generated tokens": (
        lambda: patch_activations.at(steps="all"),
        (InvalidValue, "steps=all: a rewire acts on the prompt only"),
    ),
    "beams that are no flag": (lambda: keep.at(all_beams="yes"), (InvalidType, "all_beams is True or False")),
    "no name": (lambda: keep.named(""), (InvalidType, "a name is text of at least one character, not ''")),
    "a module decorated": (
        lambda: writes("llm.mlp.act")(torch.nn.ReLU()),
        (InvalidType, "@writes decorates a function, not ReLU"),
    ),
}

IN_A_FORWARD = {
    "generated steps": (
        lambda: halve.at(steps="generated"),
        (InvalidValue, r"steps=generated never come: a forward is step 0; use lens\.generate"),
    ),
    "a read of generated steps": (lambda: keep.at(steps="generated"), (InvalidValue, "steps=generated never come")),
    "one later step": (lambda: halve.at(steps=[0, 1]), (InvalidValue, "steps=1 never come")),
}

IN_A_GENERATION = {
    "a step behind the last": (
        lambda: halve.at(steps=3),
        (InvalidValue, "steps=3 never come: max_new_tokens=3 gives steps 0 to 2"),
    ),
    "a read behind the last": (
        lambda: keep.at(steps=[1, 4]),
        (InvalidValue, "steps=4 never come: max_new_tokens=3 gives steps 0 to 3"),
    ),
    "a position behind the last": (
        lambda: halve.at(positions=83),
        (OutOfRange, "there is no position 83; there are 0 to 82"),
    ),
    "a read of the prompt behind it": (
        lambda: keep.at(positions=81),
        (OutOfRange, "there is no position 81; there are 0 to 80"),
    ),
    "a position of the prompt when it is over": (
        lambda: keep.at(positions=5, steps="generated"),
        (OutOfRange, "there is no position 5; there are 81 to 83"),
    ),
    "images when the prompt is over": (
        lambda: halve.at(positions="image", steps="generated"),
        (UnknownName, "no row has 'image' positions in these steps"),
    ),
    "beams in another order": (
        lambda: keep.at(positions=[82, 80], steps="all", all_beams=True),
        (InvalidValue, r"read as they are generated, so not in this order; write \[80, 82\]"),
    ),
}


@pytest.fixture
def untouchable(monkeypatch):
    """A lens whose model must not run, and a batch."""
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    assert batch.prompt_length == 81

    def forward(*_arguments, **_keywords):
        raise AssertionError("the model ran")

    monkeypatch.setattr(lens.module, "forward", forward)
    return lens, batch


@pytest.fixture
def server():
    """A server that must not be asked for anything but whether it serves the model."""
    with FakeNdif(SimpleNamespace(to_model_key=lambda: 'class:{"repo_id": "owner/model"}')) as server:
        yield server
    assert server.requests == 0


def refused(do, case) -> None:
    make, (error, text) = case
    with pytest.raises(error, match=text) as caught:
        do(make())
    assert isinstance(caught.value, MMNeuronError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*ALWAYS, *IN_A_FORWARD])
def test_a_forward(untouchable, server, name):
    lens, batch = untouchable
    case = {**ALWAYS, **IN_A_FORWARD}[name]
    refused(lambda graph: lens.check(graph, batch), case)
    refused(lambda graph: lens.run(graph, batch), case)
    refused(lambda graph: lens.run(graph, [batch], remote=server.url), case)
    refused(lambda graph: lens.run(keep.named("before") | graph, [batch]), case)


@pytest.mark.parametrize("name", [*ALWAYS, *IN_A_GENERATION])
def test_a_generation(untouchable, server, name):
    lens, batch = untouchable
    case = {**ALWAYS, **IN_A_GENERATION}[name]
    if name in IN_A_GENERATION or name not in ("a position too far", "one position too far"):
        refused(lambda graph: lens.generate(graph, batch, **NEW), (case[0], (case[1][0], loosened(case[1][1]))))
        refused(lambda graph: lens.check(graph, batch, max_new_tokens=3), (case[0], (case[1][0], loosened(case[1][1]))))
        refused(
            lambda graph: lens.generate(graph, [batch], remote=server.url, **NEW),
            (case[0], (case[1][0], loosened(case[1][1]))),
        )


def loosened(text: str) -> str:
    """Where a write acts on every step, more positions are there."""
    return text.replace("0 to 80", "0 to 8[02]")


def test_text_has_no_image_positions(untouchable):
    lens, batch = untouchable
    text = lens.encode(None, ["text alone"])
    with pytest.raises(UnknownName, match=r"no row has 'image' positions in this batch\. The prompts have text"):
        lens.run(halve.at(positions="image"), text)
    with pytest.raises(UnknownName, match="no row has 'image'"):
        lens.check(halve.at(positions="image"), text)
    # One row of several is enough.
    some = lens.encode([None, pictures((32, 32))[0]], ["text alone", "is it red?"])
    assert lens.check(halve.at(positions="image"), some).proved == ("halve at llm.mlp.act",)
    assert batch.rows == 3


def test_every_batch_has_the_position():
    lens = tiny_lens("llava_next")
    wide, narrow = mixed_batch(lens), lens.encode(None, ["text alone"])
    columns = narrow.prompt_length
    assert len(lens.run(keep.at(positions=[-1]), [wide, narrow])["keep", "llm.residual"]) == 2
    with pytest.raises(OutOfRange, match=f"there is no position 80; there are 0 to {columns - 1}"):
        lens.run(keep.at(positions=[80]), [wide, narrow])
    # A proof for one width says nothing of another.
    lens.run(keep.at(positions=80), wide)
    with pytest.raises(OutOfRange):
        lens.run(keep.at(positions=80), narrow)


def test_saved_graphs_meet_the_same_refusals(untouchable, tmp_path):
    from test_graph import seal

    lens, batch = untouchable
    path = save_graph(Graph((keep.at(positions=500),)), tmp_path / "graph.json")
    with pytest.raises(OutOfRange, match="there is no position 500"):
        lens.check(load_graph(path), batch)
    document = json.loads(path.read_text())
    for field, value, said in (
        ("sites", ["llm.mlp.akt"], "Unknown site 'llm.mlp.akt'"),
        ("sites", [], "No site is named"),
        ("layers", [2, 1], "write layers=[1, 2]"),
        ("layers", [1.5], "layers[0] is 1.5; it should be a valid integer"),
        ("positions", [], "positions=[] names nothing"),
        ("positions", "imag", "Unknown kind of position 'imag'"),
        ("positions", ["slice", 0, 9, 0], "step of a slice is not 0"),
        ("steps", [-1], "steps count from 0"),
        ("bindings", {"nobody": {"constant": 1}}, "keep: Unknown argument 'nobody'"),
        ("bindings", {"value": {"per_layer_of": {}}}, "has no value for any site"),
    ):
        changed = json.loads(json.dumps(document))
        changed["interventions"][0][field] = value
        path.write_text(seal(changed))
        with pytest.raises(MMNeuronError, match=re.escape(said)) as caught:
            load_graph(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_an_intervention_made_by_hand_meets_the_same_refusals():
    for settings, said in (
        ({"sites": ("llm.mlp.akt",)}, "Unknown site"),
        ({"layers": ()}, "names nothing"),
        ({"steps": (1, 0)}, "passes come in their own order"),
    ):
        with pytest.raises(MMNeuronError, match=said):
            Intervention(**{"function": halve.function, "mode": "writes", "sites": ("llm.mlp.act",), **settings})
