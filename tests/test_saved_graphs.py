"""A saved graph from elsewhere: nothing runs that is no intervention, and what is wrong is named by file and field."""

from __future__ import annotations

import json
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_graph import GRAPH, seal

from interventions import Graph, Intervention, count_active, keep, load_graph, reads, save_graph
from interventions.bindings import digest
from interventions.errors import FileMissing, InvalidType, InvalidValue, MMNeuronError
from interventions.references import intervention_at

READ = '@reads("llm.mlp.act", over="sum")\ndef total(act):\n    return act.flatten(0, -2).sum(0)\n'
HEAD = "from pathlib import Path\nfrom interventions import reads\n"
MARK = "Path(__file__).with_name('ran').touch()\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`of_ones_own`, whose modules leave a mark where importing them runs something that nobody asked for."""
    folder = tmp_path / "of_ones_own"
    for name, text in {
        "__init__.py": "",
        "good.py": HEAD + READ,
        "_private.py": HEAD + MARK + READ,
        "__main__.py": HEAD + MARK + READ,
        "program.py": HEAD + MARK + "def total(act):\n    return act\n",
        "assigned.py": HEAD
        + MARK
        + "def plain(act):\n    return act\ntotal = reads('llm.mlp.act', over='sum')(plain)\n",
        "other_decorator.py": HEAD + MARK + "def app(*a):\n    return lambda f: f\n@app('/')\ndef total(act): ...\n",
        "borrowed.py": HEAD + MARK + "from of_ones_own.good import total\nfrom interventions import count_active\n",
        "inside.py": HEAD + MARK + "class Some:\n" + "".join(f"    {line}\n" for line in READ.splitlines()),
        "replaced.py": HEAD + READ + "total = print\n",
        "swapped.py": HEAD + READ + "from interventions import count_active\ntotal = count_active\n",
        "raises.py": HEAD + READ + "1 / 0\n",
        "stops.py": HEAD + READ + "import of_no_kind_that_is_installed\n",
        "damaged.py": HEAD + MARK + READ + "def (:\n",
        "sub/__init__.py": "",
        "sub/deep.py": "import interventions as i\n\n\n@i.reads('llm.norm', over='list')\ndef held(a):\n    return a\n",
        "folder/plain.py": HEAD + READ,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "folder" / "no_python.txt").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "of_ones_own":
            del sys.modules[name]


def document_of(graph: Graph | Intervention, path: Path) -> dict[str, Any]:
    return json.loads(save_graph(graph if isinstance(graph, Graph) else Graph((graph,)), path).read_text())


def naming(function: str, path: Path) -> Path:
    document = document_of(count_active, path)
    document["interventions"][0]["function"] = function
    path.write_text(seal(document))
    return path


OURS = [
    "mmneuron_lens.__main__:app", "mmneuron_lens.embedded.train.__main__:main", "interventions.__main__:app",
    "mmneuron_lens.lens:os", "mmneuron_lens.lens:Lens", "mmneuron_lens.lens:Lens.run", "mmneuron_lens.cli:app",
    "interventions:count_active", "interventions.graph:reads", "interventions.graph:Intervention",
    "interventions.saving:load_graph", "interventions.saving:json.loads", "mmneuron_lens:Lens", "mmneuron_lens:_save",
    "interventions.counting:count_active:count_active", "interventions.counting:__builtins__",
    "interventions.counting:count_active.function", "interventions.counting:reads", "interventions.counting:_unembed",
    "interventions.counting:", ":count_active", "", ":", "interventions..counting:count_active",
    ".counting:count_active", "interventions.counting.count_active", "interventions/counting:count_active",
    "interventions.counting:count active", "interventions.counting:count_active()", "interventions.counting:lambda",
    "mmneuron_lens.ndif.keyless_api:app", "mmneuron_lens.ndif.gunicorn_settings:bind",
    "mmneuron_lens.experiments.entropy:top_two", "interventions.nothing:count_active", "interventions.counting\0:a",
]  # fmt: skip


@pytest.mark.parametrize("function", OURS)
def test_a_name_of_this_package_that_is_no_intervention_is_refused_and_imports_nothing(function, tmp_path):
    before = set(sys.modules)
    with pytest.raises(InvalidValue) as caught:
        load_graph(naming(function, tmp_path / "graph.json"))
    assert str(caught.value).startswith(f"{tmp_path / 'graph.json'}: interventions[0].function: ")
    assert str(caught.value).isprintable()
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("__main__:total", "is not package.module:function"),
        ("_private:total", "is not package.module:function"),
        ("good:total.function", "is not package.module:function"),
        ("good:__doc__", "is not package.module:function"),
        ("inside:Some.total", "is not package.module:function"),
        ("program:total", "has no function 'total' decorated with @reads, @writes or @rewires at its top"),
        ("program:Path", "has no function 'Path'"),
        ("assigned:plain", "has no function 'plain'"),
        ("assigned:total", "has no function 'total'"),
        ("other_decorator:total", "has no function 'total'"),
        ("borrowed:total", "has no function 'total'"),
        ("borrowed:count_active", "has no function 'count_active'"),
        ("inside:total", "has no function 'total'"),
        ("damaged:total", "has no function 'total'"),
        ("absent:total", "has no function 'total'"),
        ("good.total:total", "has no function 'total'"),
        ("folder:total", "has no function 'total'"),
        ("replaced:total", "is builtin_function_or_method once"),
        ("swapped:total", "not its own intervention"),
        ("raises:total", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("stops:total", "cannot be imported (ModuleNotFoundError: No module named 'of_no_kind"),
    ],
)
def test_a_name_of_ones_own_package_that_is_no_intervention_runs_nothing(name, said, package, tmp_path):
    path = naming(f"of_ones_own.{name}", tmp_path / "graph.json")
    with pytest.raises(InvalidValue, match=re.escape(said)):
        load_graph(path, packages=("of_ones_own",))
    assert not (package / "ran").exists()


def test_what_is_not_trusted_is_not_even_looked_at(package, tmp_path):
    path = naming("of_ones_own.good:total", tmp_path / "graph.json")
    with pytest.raises(InvalidValue, match=r"outside the packages.*packages=\(\.\.\., 'of_ones_own'\)"):
        load_graph(path)
    assert "of_ones_own" not in sys.modules
    with pytest.raises(InvalidType, match=r"packages is a tuple of names, \('of_ones_own',\), not one text"):
        load_graph(path, packages="of_ones_own")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["good:total", "sub.deep:held", "folder.plain:total"])
def test_ones_own_interventions_are_found_where_they_are_defined(name, package, tmp_path):
    """By whatever name the decorator goes, and in a folder without `__init__.py`."""
    own = intervention_at(f"of_ones_own.{name}")
    path = save_graph(Graph((own,)), tmp_path / "graph.json")
    for module in [one for one in sys.modules if one.startswith("of_ones_own")]:
        del sys.modules[module]
    (loaded,) = load_graph(path, packages=("of_ones_own",))
    assert loaded.function.__module__ == f"of_ones_own.{name.partition(':')[0]}"
    assert not (package / "ran").exists()


def test_what_could_not_be_loaded_is_not_saved(package, tmp_path):
    import of_ones_own._private
    import of_ones_own.assigned
    import of_ones_own.inside

    path = tmp_path / "graph.json"
    for strange in (
        of_ones_own.assigned.total, of_ones_own.inside.Some.total, of_ones_own._private.total,
        Intervention(count_active.function, "writes", ("llm.mlp.act",)),
        reads("llm.mlp.act", over="sum")(count_active.function.__class__(count_active.function.__code__, {})),
    ):  # fmt: skip
        with pytest.raises(InvalidValue, match="cannot be saved"):
            save_graph(Graph((strange,)), path)
    with pytest.raises(InvalidValue, match="the tensors' file would have this name"):
        save_graph(GRAPH, tmp_path / "graph.safetensors")
    assert not path.exists()


def test_every_intervention_of_the_two_packages_can_be_saved_and_loaded(tmp_path):
    from mmneuron_lens.experiments.entropy import top_one
    from mmneuron_lens.runtime.proving import disturb

    found = [one for one in vars(sys.modules["interventions"]).values() if isinstance(one, Intervention)]
    assert len(found) > 15
    for one in (*found, top_one, disturb):
        path = save_graph(Graph((one,)), tmp_path / "graph.json")
        assert load_graph(path) == Graph((one,))


TARGET = {
    "function": "interventions.targets:answer_log_probability",
    "name": "target",
    "site": "llm.logits",
    "bindings": {"answer": {"batch_field": "answer"}},
}


def of_target(**changed: Any) -> dict[str, Any]:
    """A gradient of it with other fields."""
    return {"weight": {"gradient": {**TARGET, **changed}}}


def of_value(**changed: Any) -> dict[str, Any]:
    return {"weight": {"value_of": {"site": "llm.norm", "source": True, **changed}}}


FIELDS = {
    "mode": [("evil", "is 'evil'; choose from 'reads', 'writes' or 'rewires'"), ("writes", "reads over='sum'")],
    "over": [
        ("evil", "is 'evil'; choose from 'sum', 'mean', 'list' or 'max'"),
        (None, "reads"),
        ({"fold": "evil", "arguments": {}}, ".over: Unknown fold 'evil'. Choices: largest"),
        ({"fold": "largest", "arguments": {}}, ".over: largest: k is missing"),
        ({"fold": "largest", "arguments": {"k": 0, "by": "a"}}, ".over: largest: k is 0"),
        ({"fold": "largest", "arguments": {"k": 1, "by": "a", "evil": 1}}, ".over: largest: Unknown argument 'evil'"),
        ({"fold": "largest", "arguments": {"k": [1]}}, ".over is {'arguments': {'k': [1]}"),
        ({"fold": "os:remove", "arguments": {}}, ".over: os:remove is outside the packages that may be loaded"),
        ({"fold": "interventions.files:write_atomically", "arguments": {}}, "that it folds a read with"),
        ({"fold": "interventions.files:_", "arguments": {}}, "names that do not begin with _"),
    ],
    "sites": [("llm.mlp.act", "it should be a valid list"), ([7], "[0] is 7; it should be a valid string")],
    "name": [("", "at least one character"), (7, "is 7; it should be a valid string")],
    "layers": [("all", "it should be a valid list"), ([True], "[0] is True"), ([1, 1], "names 1 twice"), ({}, "{}")],
    "positions": [(7, "a valid string or a valid list"), ([[0]], "[[0]]"), ({"a": 1}, "{'a': 1}"), (["slice"], "str")],
    "steps": [(7, "is 7"), ("evil", "Unknown steps 'evil'"), ([0.5], "[0.5]"), ([], "names nothing")],
    "all_beams": [(1, "is 1; it should be a valid boolean"), (None, "is None"), ("no", "is 'no'")],
    "bindings": [
        ([], "it should be a valid dictionary"),
        ({"weight": 7}, ".weight is 7; it should be a valid dictionary"),
        ({"weight": {}}, ".weight: A binding in a saved graph is of one kind, not none"),
        ({"weight": {"constant": 1, "batch_field": "weight"}}, "not constant and batch_field"),
        ({"weight": {"evil": 1}}, ".weight.evil is no field"),
        ({"weight": {"constant": [1]}}, ".weight.constant is [1]"),
        ({"weight": {"constants": [[1]]}}, ".weight.constants[0] is [1]"),
        ({"weight": {"module": ["evil"]}}, ".weight: module: Unknown site 'evil'"),
        ({"weight": {"module": []}}, ".weight: module() needs at least one site"),
        ({"weight": {"per_layer": "a"}}, ".weight.per_layer is 'a'"),
        ({"weight": {"per_layer": {}}}, ".weight.per_layer.tensor is missing"),
        ({"weight": {"per_layer_of": {"llm.mlp.act": {"tensor": "a"}}}}, ".weight: tensor 'a' is not in the file"),
        ({"weight": {"tensor": "0" * 64}}, ".weight: tensor '000000000000' is not in the file beside"),
        ({"weight": {"tensor": None}}, ".weight.tensor is None"),
        ({"weight": {"value_of": "llm.norm"}}, ".weight.value_of is 'llm.norm'; it should be a valid dictionary"),
        ({"weight": {"value_of": {"site": "llm.norm"}}}, ".weight.value_of.source is missing"),
        (of_value(site="evil"), ".weight: value_of: Unknown site 'evil'"),
        (of_value(site=None, source=False), ".weight: value_of() names no site"),
        (of_value(site=7), ".weight.value_of.site is 7"),
        (of_value(source=1), ".weight.value_of.source is 1; it should be a valid boolean"),
        (of_value(evil=1), ".weight.value_of.evil is no field"),
        ({"weight": {**of_value()["weight"], "constant": 1}}, "of one kind, not value_of and constant"),
        ({"weight": {"gradient": [TARGET]}}, "it should be a valid dictionary"),
        ({"weight": {"gradient": {}}}, ".weight.gradient.function is missing"),
        (of_target(function="os:remove"), ".weight.function: os:remove is outside the packages that may be loaded"),
        (of_target(function="interventions.counting:_"), ".weight.function: 'interventions.counting:_' is not"),
        (of_target(function="interventions.ablating:zero_neurons", bindings={}), "gradient takes a read of one number"),
        (of_target(site="evil"), ".weight: Unknown site 'evil'"),
        (of_target(site="llm.mlp.act"), ".weight: target: a target reads at one site without layers"),
        (of_target(site="llm.*"), "a target reads at one site without layers"),
        (of_target(name=""), "a name is text of at least one character"),
        (of_target(layers=[1]), ".weight.gradient.layers is no field"),
        (of_target(bindings=7), ".weight.gradient.bindings is 7"),
        (of_target(bindings={"answer": {}}), ".weight.bindings.answer: A binding in a saved graph is of one kind"),
        (of_target(bindings={"evil": {"constant": 1}}), "Unknown argument 'evil'. Choices: answer"),
        (of_target(bindings={"answer": {"module": ["llm.norm"]}}), "a target takes constants and fields"),
        (of_target(bindings={"answer": {"tensor": "0" * 64}}), ".bindings.answer: tensor '000000000000' is not in"),
        (of_target(bindings={"answer": of_target()["weight"]}), "a target takes constants and fields"),
        (
            of_target(bindings={"answer": of_target(bindings={"answer": of_target()["weight"]})["weight"]}),
            "interventions[1].bindings.weight: target: answer is given a gradient; a target takes constants and fields",
        ),
    ],
    "rows": [("all", "is 'all'"), ([True], "[0] is True"), ([1, 1], "names 1 twice"), ([-1], "from 0"), ([], "names")],
    "function": [(7, "is 7; it should be a valid string")],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value", "said"), [(name, *one) for name, some in FIELDS.items() for one in some])
def test_a_field_of_another_kind_is_named_with_its_place(field, value, said, tmp_path):
    path = tmp_path / "graph.json"
    document = document_of(keep | count_active, path)
    document["interventions"][1][field] = value
    path.write_text(seal(document))
    with pytest.raises(MMNeuronError, match=re.escape(said)) as caught:
        load_graph(path)
    assert str(caught.value).startswith(f"{path}: interventions[1].{field}")
    assert "\n" not in str(caught.value)


def test_a_field_that_is_missing_or_unknown_is_named(tmp_path):
    path = tmp_path / "graph.json"
    whole = document_of(keep | count_active, path)
    for name in whole["interventions"][1]:
        document = json.loads(json.dumps(whole))
        del document["interventions"][1][name]
        path.write_text(seal(document))
        with pytest.raises(InvalidValue, match=re.escape(f"{path}: interventions[1].{name} is missing.")):
            load_graph(path)
    for place, said in ((whole, "evil"), (whole["interventions"][0], r"interventions\[0\].evil")):
        place["evil"] = 1
        path.write_text(seal(whole))
        with pytest.raises(InvalidValue, match=rf"graph\.json: {said} is no field of a saved graph"):
            load_graph(path)
        del place["evil"]
    for value in (None, 7, "a", {}, [7], [None], [[]]):
        path.write_text(seal({**whole, "interventions": value}))
        with pytest.raises(InvalidValue, match=r"graph\.json: interventions(\[0\])? is .*; it should be a valid"):
            load_graph(path)


ENTRY = '{"format": "intervention-graph", "version": 3, '
TEXTS = {
    "nothing": "",
    "nested 60,000 deep": "[" * 60_000,
    "nested 60,000 deep in a field": ENTRY + '"interventions": ' + "[" * 60_000 + "]" * 60_000 + "}",
    "nested 900 deep": seal(
        {"format": "intervention-graph", "version": 3, "interventions": json.loads("[" * 900 + "]" * 900)}
    ),
    "a key twice": ENTRY + '"interventions": [], "interventions": []}',
    "a number of 5,000 digits": ENTRY + f'"interventions": {"9" * 5000}' + "}",
    "no number": "NaN",
    "no Unicode": b"\xff\xfe\xfd",
    "zeros": bytes(100),
    "another version's number": seal({"format": "intervention-graph", "version": 3.5, "interventions": []}),
    "a version that is nearly a number": seal({"format": "intervention-graph", "version": 3.0, "interventions": []}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_document_is_one_line(name, tmp_path):
    path, text = tmp_path / "graph.json", TEXTS[name]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidValue) as caught:
        load_graph(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 400


def test_what_is_no_file_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / ("a" * 300), tmp_path / "a\0b"):
        with pytest.raises(InvalidValue, match="cannot be read"):
            load_graph(path)


def test_tensors_lie_beside_in_one_file_and_are_those_that_are_bound(tmp_path):
    path = tmp_path / "graph.json"
    document = document_of(GRAPH, path)
    beside = path.with_suffix(".safetensors")
    whole = beside.read_bytes()
    secret = tmp_path.parent / f"{tmp_path.name}.safetensors"
    secret.write_bytes(whole)
    for name in (f"../{secret.name}", str(secret), ".", "", "..", "graph.json", "a/b.safetensors", "/etc/passwd"):
        path.write_text(seal({**document, "tensors": name}))
        with pytest.raises(InvalidValue, match=r"graph\.json: tensors is .*no safetensors file beside it"):
            load_graph(path)
    path.write_text(seal({**document, "tensors": "a\0.safetensors"}))
    with pytest.raises(InvalidValue, match="cannot be read"):
        load_graph(path)
    path.write_text(seal({**document, "tensors": "\ud800.safetensors"}))
    with pytest.raises(InvalidValue, match="cannot be read"):
        load_graph(path)
    path.write_text(seal({name: value for name, value in document.items() if name != "tensors"}))
    with pytest.raises(InvalidValue, match=r"interventions\[0\]\.bindings\.neurons: tensor '\w{12}' is not in"):
        load_graph(path)
    path.write_text(seal(document))
    for content, said in (
        (b"", "no safetensors"),
        (struct.pack("<Q", 10**9) + b"{", "no safetensors"),
        (struct.pack("<Q", 2**63) + b"{}", "no safetensors"),
        (struct.pack("<Q", 60_000) + b"[" * 60_000, "no safetensors"),
        (whole[:200], "no safetensors"),
        (whole + b"\0", "no safetensors"),
    ):
        beside.write_bytes(content)
        with pytest.raises(InvalidValue, match=rf"graph\.safetensors: {said}"):
            load_graph(path)
    beside.write_bytes(whole)
    assert load_graph(path) == GRAPH
    beside.unlink()
    beside.mkdir()
    with pytest.raises(InvalidValue, match=r"graph\.safetensors: cannot be read \(Is a directory\)"):
        load_graph(path)


def test_a_tensor_too_many_or_of_another_dtype_is_refused(tmp_path):
    path = tmp_path / "graph.json"
    save_graph(GRAPH, path)
    beside = path.with_suffix(".safetensors")
    from safetensors.torch import load_file

    held = load_file(beside)
    more = torch.ones(3)
    save_file({**held, digest(more): more}, beside)
    with pytest.raises(
        InvalidValue, match=rf"graph\.json: graph\.safetensors holds {digest(more)[:12]}, which nothing"
    ):
        load_graph(path)
    for change in (lambda one: one.double(), lambda one: one[:1], lambda one: torch.full(one.shape, float("nan"))):
        save_file({name: change(one).contiguous() for name, one in held.items()}, beside)
        with pytest.raises(InvalidValue, match="was changed since the graph was saved"):
            load_graph(path)
    save_file({name: one for name, one in list(held.items())[1:]}, beside)
    with pytest.raises(InvalidValue, match="is not in the file beside"):
        load_graph(path)
    beside.unlink()
    with pytest.raises(FileMissing):
        load_graph(path)


def test_a_long_list_of_layers_takes_no_longer_than_it_is(tmp_path):
    path = tmp_path / "graph.json"
    document = document_of(keep, path)
    document["interventions"][0]["layers"] = list(range(200_000))
    path.write_text(seal(document))
    assert load_graph(path).interventions[0].layers == tuple(range(200_000))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "evil"}, "Unknown mode 'evil'"),
        ({"over": "evil"}, "Unknown over 'evil'"),
        ({"over": None}, "Unknown over None"),
        ({"mode": "writes"}, "over='sum' is how a read's batches become one; it writes"),
    ],
)
def test_an_intervention_made_by_hand_has_a_mode_and_a_fold_that_exist(settings, said):
    with pytest.raises(InvalidValue, match=re.escape(said)):
        replace(count_active, **settings)
