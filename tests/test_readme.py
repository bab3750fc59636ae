"""What README and docs show is there: code runs or at least imports, commands have their options, links lead on."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
import typer
from fake_ndif import FakeNdif, served_model

from mmneuron_lens import Lens, count_active
from mmneuron_lens.cli import app
from mmneuron_lens.embedded.checkpoints import llava_next
from mmneuron_lens.runs.examples import examples_stage
from mmneuron_lens.runs.store import Store

ROOT = Path(__file__).parent.parent
README, START = ROOT / "README.md", ROOT / "docs" / "start.md"
DOCS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "mmneuron_lens" / "embedded").glob("*/CARD.md"))
PAGES = [*DOCS, *CARDS, *sorted((ROOT / "benchmarks").rglob("*.md"))]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, outdented."""
    found = re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, kind, code in found if kind == language]


def commands(page: Path) -> list[str]:
    """Lines of code that begin with `mmneuron`, or run the module, without comments; spans of code in text too."""
    text = page.read_text()
    lines = re.findall(r"^ *(mmneuron .*?)(?: +#.*)?$", text, re.MULTILINE)
    spans = re.findall(r"`(mmneuron [^`]*?)`", text)
    module = re.findall(r"--module mmneuron_lens (.*)$", text, re.MULTILINE)
    return [*lines, *spans, *(f"mmneuron {words}" for words in module)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the pages' code runs: a later page goes on in `runs/first` of an earlier one."""
    return tmp_path_factory.mktemp("pages")


def run(
    page: Path,
    scope: dict[str, Any],
    before: Mapping[str, Callable[[dict[str, Any]], object]] | None = None,
    instead: Mapping[str, str] | None = None,
) -> None:
    """Runs the page's blocks of Python, each from a file that stays, since functions travel by their source.

    - before: what is done first where a block holds a text. instead: what stands in for a text, such as a model.
    """
    for number, code in enumerate(blocks(page, "python")):
        for text, prepare in (before or {}).items():
            if text in code:
                prepare(scope)
        for text, other in (instead or {}).items():
            code = code.replace(text, other)
        file = Path(f"{page.stem}_{number}.py").resolve()
        file.write_text(code)
        exec(compile(code, str(file), "exec"), scope)


def a_smaller_demo(scope: dict[str, Any]) -> None:
    """`runs/look` as the demo leaves it, of the few images that the page has counted."""
    shutil.copytree("runs/first", "runs/look", dirs_exist_ok=True)
    corpus, selection = scope["corpus"], scope["found"].selection
    examples_stage(scope["lens"], selection, corpus.by_domain(), Store("runs/look"), k=2, corpus=corpus.name)


def test_the_readme_runs_from_top_to_bottom(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "")
    # The embedded model stands in for the one of 13B; a lens of it makes its folder known to nnsight.
    checkpoint = llava_next()
    scope: dict[str, Any] = {"__name__": "readme"}
    Lens.weightless(checkpoint).nnsight.to_model_key()
    with FakeNdif(served_model(checkpoint), rounds=0) as server:
        monkeypatch.setattr(nnsight.CONFIG.API, "HOST", server.url)
        run(README, scope, {'"runs/look"': a_smaller_demo}, {"llava-hf/llava-v1.6-vicuna-13b-hf": str(checkpoint)})
        assert len(server.ran) == 2, "one job asks about the weights, one is the page's"
        far = scope["far"].run(scope["strongly_active"], scope["asked"])["strongly_active"]
    here = scope["lens"].run(scope["strongly_active"], scope["batch"])["strongly_active"]
    assert here.any()
    assert torch.equal(here, far)
    neurons = scope["found"].selection.neurons("medical")["llm.mlp.act"]
    counts = scope["lens"].run(scope["off"] | count_active, scope["batch"])["count_active", "llm.mlp.act"]
    assert counts.dtype == torch.int64
    assert neurons.any()
    assert counts.any()
    assert not counts[neurons].any()
    assert scope["card"].to_frame()["domain"].to_list() == ["document"]
    assert len(scope["card"].examples()) == 2
    assert Path("neuron.png").stat().st_size > 20_000


def test_the_first_hour_runs_from_top_to_bottom(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {"__name__": "start"}
    run(START, scope)
    neurons = scope["found"].selection.neurons("medical")["llm.mlp.act"]
    assert neurons.any()
    assert not scope["out"]["count_active", "llm.mlp.act"][neurons].any()
    assert "writes zero_neurons" in capsys.readouterr().out
    first, then = ({one.images[0].read_bytes() for one in scope[name]} for name in ("corpus", "asked"))
    assert then
    assert not first & then, "neurons are judged on pictures that did not select them"


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert sum(line.startswith("![") for line in lines) >= 4


def test_the_first_code_is_ten_lines_and_the_rest_about_five():
    found = [[line for line in code.splitlines() if line.strip()] for code in blocks(README, "python")]
    assert len(found[0]) + len(found[1]) == 10
    assert max(map(len, found)) <= 10


@pytest.mark.parametrize("page", [README, START, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_targets_of_make_are_there(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE)
    assert named
    assert set(named) <= targets


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
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for name in re.findall(r"`((?:mmneuron_lens|interventions)(?:\.\w+)+)`", text):
        if name in groups:
            continue
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"
