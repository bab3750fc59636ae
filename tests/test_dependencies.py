"""What the packages import is what `pyproject.toml` asks for, and what an extra brings is asked for by its name."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from interventions.errors import MissingPackage, MMNeuronError
from mmneuron_lens.extras import EXTRAS, missing, needed

ROOT = Path(__file__).parent.parent
PACKAGES = ("interventions", "mmneuron_lens")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

SERVER = {"actor.py", "gunicorn_settings.py", "keyless_api.py"}
"""Files of `mmneuron_lens/ndif` that run in the server's own environment, which `mmneuron ndif up` makes."""

FOR_OTHERS = {"accelerate", "bitsandbytes", "s3fs"}
"""What no file of ours imports: transformers and fsspec do."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", one)[0]) for one in requirements} - {"mmneuron-lens"}


def imported(file: Path) -> tuple[set[str], set[str]]:
    """Roots of what a file imports, and of what it asks `needed` for."""
    plain, asked = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            plain |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            plain.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(first := node.args[0], ast.Constant):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called == "needed":
                asked.add(str(first.value))
            elif called in ("import_module", "_import_module"):
                plain.add(str(first.value))
    roots = [{name.partition(".")[0] for name in found} for found in (plain, asked)]
    return roots[0] - sys.stdlib_module_names - set(PACKAGES), roots[1]


FILES = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.name not in SERVER]


def test_what_is_imported_is_a_dependency_and_every_dependency_is_imported():
    distributions = packages_distributions()
    found = {root: file for file in FILES for root in imported(file)[0]}
    by_name = {normal(name): root for root in found for name in distributions[root]}
    declared = names(PROJECT["dependencies"])
    assert {name: found[root] for name, root in by_name.items() if name not in declared} == {}
    assert declared - set(by_name) == set()


def test_what_an_extra_brings_is_asked_for_by_needed():
    asked = {root for file in FILES for root in imported(file)[1]}
    assert asked | FOR_OTHERS == set(EXTRAS)
    for package, extra in EXTRAS.items():
        assert normal(package) in names(PROJECT["optional-dependencies"][extra]), package
    brought = {extra: names(PROJECT["optional-dependencies"][extra]) for extra in set(EXTRAS.values())}
    assert {name for packages in brought.values() for name in packages} == {normal(name) for name in EXTRAS}


def test_extras_that_are_named_anywhere_are_there():
    shown = re.compile(r"mmneuron-lens\\*\[([\w,]+)\\*\]")
    pages = [*FILES, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    found = {extra: page for page in pages for names in shown.findall(page.read_text()) for extra in names.split(",")}
    extras = set(PROJECT["optional-dependencies"])
    assert {extra: page for extra, page in found.items() if extra not in extras} == {}
    assert {"smol", "corpora"} <= set(found) | set(EXTRAS.values())


def test_the_error_of_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackage) as caught:
        needed("datasets", "reading hub corpora")
    assert str(caught.value) == "reading hub corpora needs datasets: pip install 'mmneuron-lens[corpora]'."
    assert isinstance(caught.value, MMNeuronError)
    assert isinstance(caught.value, ImportError)
    assert str(missing("int8", "bitsandbytes", "accelerate")).startswith("int8 needs bitsandbytes and accelerate: pip")


@pytest.mark.parametrize("content", ["import a_part_that_is_not_there", "raise ImportError('libx.so: no such file')"])
def test_a_package_that_does_not_load_is_not_called_missing(monkeypatch, tmp_path, content):
    (tmp_path / "gguf.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    with pytest.raises(MissingPackage, match=r"needs gguf, which is installed but does not load \(.*(not_there|libx)"):
        needed("gguf", "the smol model")
