"""What README and docs show is there: code runs or at least imports, commands have their options, links lead on."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import typer

from mmneuron_lens.cli import app

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "mmneuron_lens" / "embedded").glob("*/CARD.md"))
PAGES = [*DOCS, *CARDS, *sorted((ROOT / "benchmarks").rglob("*.md"))]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, outdented."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands(page: Path) -> list[str]:
    """Lines of code that begin with `mmneuron`, or run the module, without comments; spans of code in text too."""
    text = page.read_text()
    lines = re.findall(r"^ *(mmneuron .*?)(?: +#.*)?$", text, re.MULTILINE)
    spans = re.findall(r"`(mmneuron [^`]*?)`", text)
    module = re.findall(r"--module mmneuron_lens (.*)$", text, re.MULTILINE)
    return [*lines, *spans, *(f"mmneuron {words}" for words in module)]


def test_the_readme_runs_from_top_to_bottom(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for code in blocks(ROOT / "README.md", "python"):
        exec(compile(code, "README.md", "exec"), scope)
    counts, neurons = scope["out"]["count_active", "llm.mlp.act"], scope["found"].selection.neurons("medical")
    assert counts.dtype == torch.int64
    assert neurons["llm.mlp.act"].any()
    assert not counts[neurons["llm.mlp.act"]].any()
    assert "writes zero_neurons" in repr(scope["graph"])


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_imports_that_the_docs_show_are_there(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@pages
def test_commands_have_the_options_they_are_shown_with(page):
    for line in commands(page):
        words = shlex.split(re.sub(r"\[[^]]*\]|[.,;:]{1,3}$", "", line))[1:]
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            # "mmneuron jobs ..." and "`mmneuron demo`, `count`" name a group, or nothing, on purpose.
            if words[0].startswith(("-", ".")):
                break
            name = words.pop(0)
            assert name in command.commands, f"{page.name}: {line}"
            command = command.commands[name]
        known = {"--help"} | {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
        assert not unknown, f"{page.name}: {line}: {', '.join(unknown)}"


def test_contributing_draws_the_rooms_as_the_contracts_have_them():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one["type"] == "layers" and one.get("containers")]
    found = [{room.strip() for room in re.split(r"[|:]", layer)} for layer in layers]
    wanted = [rooms for rooms in found if not all(_beside_cli(one) for one in rooms)]
    (drawing,) = [one for one in blocks(ROOT / "CONTRIBUTING.md", "") if "interventions" in one]
    drawn = [set(re.findall(r"\w+", line[14:40])) for line in drawing.splitlines()]
    assert drawn == [*wanted, {"interventions"}]


def _beside_cli(name: str) -> bool:
    beside = ("__main__", "options", "printing", "completions", "doctor", "user_errors")
    return name in beside or name.endswith(("command", "commands"))


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pages
def test_files_and_modules_named_are_there(page):
    if page.name == "CHANGELOG.md" or "results-" in page.name or "real-size-" in page.name:
        return
    text = page.read_text()
    for name in re.findall(r"`((?:mmneuron_lens|interventions|tests|docs|notebooks|benchmarks|runs)/[\w./-]+)`", text):
        # A run's folder is made by the command beside it.
        assert name.startswith("runs/") or (ROOT / name).exists(), f"{page.name}: {name}"
    for name in re.findall(r"`((?:mmneuron_lens|interventions)(?:\.\w+)+)`", text):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"
