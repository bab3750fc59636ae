"""Arrows point one way, and what may travel to a server is plain."""

from __future__ import annotations

import ast
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


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def offenders(room: str, allowed) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        if is_in(".".join(path.relative_to(ROOT).with_suffix("").parts), room)
        for name in sorted(imports(path))
        if not allowed(name)
    ]


def standard(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


def test_the_language_knows_no_checkpoint():
    known = ("torch", "jaxtyping", "safetensors", "interventions")
    assert offenders("interventions", lambda name: standard(name) or name.split(".")[0] in known) == []


def test_what_travels_imports_nothing_of_ours():
    known = ("torch", "transformers", "numpy", "PIL")

    def allowed(name: str) -> bool:
        return standard(name) or name.split(".")[0] in known or is_in(name, "mmneuron_lens.wire")

    assert offenders("mmneuron_lens.wire", allowed) == []


# Types are for annotations, which are left behind.
WIRE = sorted(path for path in (ROOT / "mmneuron_lens" / "wire").glob("*.py") if path.stem != "types")


@pytest.mark.parametrize("path", WIRE, ids=lambda path: path.name)
def test_what_travels_is_plain(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef), f"line {node.lineno}: only functions travel"
        if isinstance(node, ast.FunctionDef):
            assert not node.decorator_list, f"{node.name}: a decorator is dropped on the way"
        assert not isinstance(node, ast.Nonlocal | ast.Global)


ROOMS_BELOW = {
    "mmneuron_lens.architectures": {
        "lens",
        "model",
        "fingerprint",
        "runtime",
        "corpora",
        "neurons",
        "experiments",
        "report",
        "cli",
        "embedded",
    },
    "mmneuron_lens.model": {"lens", "runtime", "corpora", "neurons", "experiments", "report", "cli", "embedded"},
    "mmneuron_lens.fingerprint": {"lens", "model", "runtime", "corpora", "experiments", "report", "cli", "embedded"},
    "mmneuron_lens.runtime": {"lens", "corpora", "neurons", "experiments", "report", "cli"},
    "mmneuron_lens.neurons": {"lens", "models", "runtime", "wire", "experiments", "report", "cli", "embedded"},
    "mmneuron_lens.corpora": {"lens", "models", "runtime", "neurons", "experiments", "report", "cli", "embedded"},
    "mmneuron_lens.report": {"lens", "models", "runtime", "wire", "experiments", "cli", "embedded"},
    "mmneuron_lens.metrics": {"lens", "models", "runtime", "wire", "neurons", "experiments", "report", "embedded"},
    "mmneuron_lens.artifacts.format": {"lens", "models", "runtime", "wire", "neurons", "experiments", "report", "cli"},
}


@pytest.mark.parametrize("room", ROOMS_BELOW)
def test_arrows_point_one_way(room):
    above = ROOMS_BELOW[room]
    found = offenders(room, lambda name: not any(is_in(name, f"mmneuron_lens.{other}") for other in above))
    assert found == []


def test_training_is_a_leaf():
    outside = [path for path in FILES if "embedded/train" not in path.as_posix()]
    assert [path for path in outside if any("embedded.train" in name for name in imports(path))] == []


def test_no_file_is_called_utils_and_nothing_is_pickled():
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "misc", "common_utils")
        names = imports(path)
        assert "pickle" not in names
        text = path.read_text()
        assert "torch.save(" not in text
        # nnsight's results are torch files; they are loaded as tensors only.
        assert all("weights_only=True" in line for line in text.splitlines() if "torch.load(" in line)


def test_importing_the_package_is_light():
    import subprocess

    code = (
        "import sys, mmneuron_lens; print([m for m in ('nnsight', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_nnsight_may_be_imported_first():
    import subprocess

    code = "import nnsight, mmneuron_lens, interventions, mmneuron_lens.lens; print(hasattr(object(), 'save'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == "True"
