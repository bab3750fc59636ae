"""Arrows point one way, files are small and named once, and what may travel to a server is plain."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for room in ("interventions", "mmneuron_lens") for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_arrows_point_one_way_and_no_file_is_in_a_circle():
    """The contracts of pyproject.toml: rooms in layers, what is pure, what travels, what is a leaf."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_two_classes_never_share_a_name():
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_files_hold_one_idea():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES if path.stem not in ("__init__", "__main__")}
    assert {path.name: count for path, count in lengths.items() if count > 400} == {}
    assert 60 <= statistics.median(lengths.values()) <= 150


def test_no_room_is_above_a_sixth_of_the_code():
    lengths: dict[str, int] = {}
    for path in FILES:
        parts = path.relative_to(ROOT).parts
        room = parts[1] if len(parts) > 2 else parts[0]
        lengths[room] = lengths.get(room, 0) + len(path.read_text().splitlines())
    total = sum(lengths.values())
    assert {room: count for room, count in lengths.items() if 6 * count > total} == {}


WIRE = sorted((ROOT / "mmneuron_lens" / "wire").glob("*.py"))
TYPES = ("mmneuron_lens.wire.types", "mmneuron_lens.wire.facts_types", "jaxtyping", "typing")


def signature(function: ast.FunctionDef) -> list[ast.expr | None]:
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return [function.returns, *(argument.annotation for argument in arguments)]


def types_of(tree: ast.Module) -> set[str]:
    """Names that a server does not have: types of this package and of jaxtyping, and classes made here."""
    found = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in TYPES:
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def used_when_run(body: list[ast.stmt]) -> set[str]:
    """Names in statements, annotations of local variables left out: Python does not evaluate those."""
    skipped = {
        id(part)
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.AnnAssign)
        for part in ast.walk(node.annotation)
    }
    return {
        node.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and id(node) not in skipped
    }


@pytest.mark.parametrize("path", WIRE, ids=lambda path: path.name)
def test_what_travels_is_plain(path):
    tree = ast.parse(path.read_text())
    names = types_of(tree)
    top = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Nonlocal | ast.Global)
        if isinstance(node, ast.ClassDef):
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            assert bases & ({"TypedDict", "Protocol"} | names), f"{node.name}: only functions travel"
        if isinstance(node, ast.FunctionDef):
            assert not node.decorator_list, f"{node.name}: a decorator is dropped on the way"
    for function in top:
        assert all(signature(function)), f"{function.name} lacks an annotation"
        found = used_when_run(function.body) & names
        assert not found, f"{function.name} uses {', '.join(found)} when it runs, which a server does not have"
        inner = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function]
        for node in inner:
            assert not any(signature(node)), f"{node.name}: annotations of an inner function are made where it runs"


def test_no_file_is_called_utils_and_nothing_is_pickled():
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "misc", "common_utils")
        names = imports(path)
        assert "pickle" not in names
        text = path.read_text()
        # LAPE's masks are exchanged as torch files; what is written there are lists of tensors alone.
        assert "torch.save(" not in text or path.name == "lape_masks.py"
        # nnsight's results are torch files; they are loaded as tensors only.
        assert all("weights_only=True" in line for line in text.splitlines() if "torch.load(" in line)


def test_importing_the_package_is_light():
    code = (
        "import sys, mmneuron_lens; print([m for m in ('nnsight', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_nnsight_may_be_imported_first():
    code = "import nnsight, mmneuron_lens, interventions, mmneuron_lens.lens; print(hasattr(object(), 'save'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == "True"
