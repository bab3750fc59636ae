"""Graphs as data: printed, compared, saved, loaded, and run the same."""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256

import pytest
import torch
from conftest import mixed_batch
from safetensors.torch import load_file, save_file

from interventions import (
    Graph,
    add_vector,
    batch_field,
    count_active,
    load_graph,
    logit_lens,
    module,
    per_layer,
    reads,
    save_graph,
    scale_neurons,
    zero_neurons,
)
from interventions.bindings import Binding, binding, unpack
from interventions.errors import FileMissing, InvalidValue

MASK = torch.arange(3 * 48).reshape(3, 48) % 3 == 0
GRAPH = (
    zero_neurons.bind(neurons=per_layer(MASK)).at(layers=[0, -1], steps="all")
    | count_active.at("*.act", positions=slice(1, None))
    | scale_neurons.at("vision.mlp.act").bind(neurons=per_layer({"vision.mlp.act": MASK[:, :40]}), factor=0.25)
    | add_vector.bind(vector=torch.ones(32)).named("steer").at(positions="image")
    | logit_lens.at(["llm.embedding", "llm.residual"]).bind(top_k=3)
)


def test_printed_in_forward_order():
    text = repr(GRAPH)
    sites = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and not line.startswith("    ")]
    assert sites == [
        "vision.mlp.act",
        "qformer.query.act",
        "qformer.text.act",
        "projector.deep.act",
        "projector.act",
        "llm.embedding",
        "llm.mlp.act",
        "llm.residual",
    ]
    assert "writes zero_neurons(neurons=per_layer(bool[3, 48])) [layers 0, -1; steps all]" in text
    assert "reads count_active(weight=field weight) over=sum [positions 1:]" in text
    assert "<td>llm.mlp.act</td>" in GRAPH._repr_html_()
    assert repr(Graph()) == "Graph() — runs the model and changes nothing"


def test_equality_is_by_content():
    def graph(mask):
        return zero_neurons.bind(neurons=per_layer(mask)) | count_active

    assert graph(MASK) == graph(MASK.clone())
    assert hash(graph(MASK)) == hash(graph(MASK.clone()))
    assert graph(MASK) != graph(~MASK)
    assert graph(MASK) != count_active | zero_neurons.bind(neurons=per_layer(MASK))
    assert count_active.at(layers=1) != count_active.at(layers=2)
    assert count_active.named("a") != count_active


def test_an_intervention_is_still_its_function():
    act = torch.tensor([[1.0, 2.0]])
    assert zero_neurons(act, torch.tensor([True, False])).tolist() == [[0.0, 2.0]]
    assert "Switch the marked neurons off" in zero_neurons.__doc__
    assert zero_neurons.__wrapped__ is zero_neurons.function
    with pytest.raises(AttributeError):
        zero_neurons.name = "another"


def test_json_round_trip_is_equal_and_runs_the_same(lens, tmp_path):
    path = save_graph(GRAPH, tmp_path / "graph.json")
    loaded = load_graph(path)
    assert loaded == GRAPH
    batch = mixed_batch(lens)
    one, other = lens.run(GRAPH, batch), lens.run(loaded, batch)
    assert set(one) == set(other)
    for key, value in one.items():
        if key[0] == "count_active":
            assert torch.equal(value, other[key])
        else:
            assert torch.equal(value[0]["tokens"], other[key][0]["tokens"])
    assert json.loads(path.read_text())["interventions"][0]["function"] == "interventions.ablating:zero_neurons"


BINDINGS = [
    (torch.ones(2, 3), "float32[2, 3]", {"tensor"}),
    (torch.zeros(0, dtype=torch.int64), "int64[0]", {"tensor"}),
    (per_layer(MASK), "per_layer(bool[3, 48])", {"per_layer"}),
    (per_layer({"llm.mlp.act": MASK}), "per_layer({llm.mlp.act: bool[3, 48]})", {"per_layer_of"}),
    (batch_field("weight"), "field weight", {"batch_field"}),
    (module("llm.norm", "llm.unembed"), "module(llm.norm, llm.unembed)", {"module"}),
    ((1, "two", None), "(1, 'two', None)", {"constants"}),
    (True, "True", {"constant"}),
    (1, "1", {"constant"}),
    (1.0, "1.0", {"constant"}),
    ("1", "'1'", {"constant"}),
]


@pytest.mark.parametrize(("value", "shown", "kinds"), BINDINGS, ids=[shown for _, shown, _ in BINDINGS])
def test_a_binding_shows_itself_and_survives_json(value, shown, kinds):
    bound, tensors = binding(value), {}
    assert isinstance(bound, Binding)
    assert bound.show() == shown
    packed = json.loads(json.dumps(bound.pack(tensors)))
    assert set(packed) == kinds
    back = unpack(packed, tensors)
    assert back == bound
    assert hash(back) == hash(bound)
    assert [binding(other) == bound for other, _, _ in BINDINGS].count(True) == 1


def test_bindings_that_cannot_be_saved_or_read_are_refused():
    for value in ({"a": 1}, [torch.ones(1)], object()):
        with pytest.raises(ValueError, match=f"A binding of type {type(value).__name__} cannot be saved"):
            binding(value).pack({})
    with pytest.raises(ValueError, match="Unknown kind of binding 'gradient' in a saved graph; update this package"):
        unpack({"gradient": "llm.logits"}, {})


def test_functions_of_a_notebook_are_refused_with_the_cure(tmp_path):
    @reads("llm.mlp.act", over="sum")
    def nested(act):
        return act.sum(0)

    with pytest.raises(ValueError, match=r"nested cannot be saved: .*Move the function to a module"):
        save_graph(Graph((nested,)), tmp_path / "graph.json")


def seal(document: dict) -> str:
    """The document as JSON with its sha256, as the format says."""
    document.pop("sha256", None)
    return json.dumps({**document, "sha256": sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()})


def test_loading_is_restricted_to_named_packages(tmp_path):
    path = save_graph(Graph((count_active,)), tmp_path / "graph.json")
    document = json.loads(path.read_text())
    document["interventions"][0]["function"] = "os:system"
    path.write_text(seal(document))
    with pytest.raises(ValueError, match=r"os:system is outside the packages.*packages=\(\.\.\., 'os'\)"):
        load_graph(path)


def test_own_packages_load_when_opted_in(tmp_path, monkeypatch):
    (tmp_path / "my_interventions.py").write_text(
        "from interventions import reads\n\n"
        '@reads("llm.mlp.act", over="sum")\ndef total(act):\n    return act.flatten(0, -2).sum(0)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_interventions

    path = save_graph(Graph((my_interventions.total,)), tmp_path / "graph.json")
    with pytest.raises(ValueError, match="outside the packages"):
        load_graph(path)
    assert load_graph(path, packages=("my_interventions",)) == Graph((my_interventions.total,))


def test_changed_files_are_noticed(tmp_path):
    path = save_graph(GRAPH, tmp_path / "graph.json")
    beside = path.with_suffix(".safetensors")
    save_file(
        {name: ~tensor if tensor.dtype == torch.bool else tensor for name, tensor in load_file(beside).items()}, beside
    )
    with pytest.raises(ValueError, match="was changed since the graph was saved"):
        load_graph(path)
    beside.write_bytes(beside.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"graph\.safetensors: no safetensors"):
        load_graph(path)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"graph\.safetensors: no such file, which graph\.json needs"):
        load_graph(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"graph\.json: no such file"):
        load_graph(path)


def test_no_byte_of_a_saved_graph_changes_unnoticed(tmp_path):
    path = save_graph(GRAPH, tmp_path / "graph.json")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for changed in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(changed)
            with contextlib.suppress(InvalidValue, FileMissing):
                # Between the parts, one white space is as good as another.
                assert load_graph(path) == GRAPH, place


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": "something else"}', "not a saved graph"),
        ("[]", "not a saved graph"),
        ("no JSON", "not a saved graph"),
        ('{"format": "intervention-graph", "version": 99}', "version 99 of saved graphs, not 3; save it again"),
        ('{"format": "intervention-graph", "version": 1, "interventions": []}', "version 1 of saved graphs, not 3"),
    ],
)
def test_what_is_no_saved_graph_is_refused(tmp_path, text, said):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"graph\.json: {said}"):
        load_graph(path)
