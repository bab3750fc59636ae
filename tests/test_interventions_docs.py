"""docs/interventions.md: every line runs and shows what it says; every public name has its line and example."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import interventions

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "interventions.md"

FIRST = "Before all"


def sections() -> dict[str, list[tuple[int, str]]]:
    """The blocks of each section with the line of the page where each begins."""
    found: dict[str, list[tuple[int, str]]] = {}
    text = PAGE.read_text(encoding="utf-8")
    for match in re.finditer(r"^## ([^\n]*)$|^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1]:
            found[match[1]] = []
        else:
            found[list(found)[-1]].append((text[: match.start()].count("\n") + 2, match[2]))
    return found


def shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return repr(value)


def run(blocks: list[tuple[int, str]], scope: dict[str, Any]) -> int:
    """Run blocks and compare what each commented expression shows; how many were compared."""
    compared = 0
    for line, code in blocks:
        lines = code.splitlines()
        for node in ast.parse(code).body:
            where = f"{PAGE.name}:{line + node.lineno - 1}"
            if not isinstance(node, ast.Expr):
                exec(compile(ast.Module([node], []), where, "exec"), scope)
                continue
            value = eval(compile(ast.Expression(node.value), where, "eval"), scope)
            if value is None:
                continue
            comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0 :]
            assert comment.startswith("  # "), f"{where} shows nothing; write what it gives behind it"
            assert shown(value) == comment.removeprefix("  # "), where
            compared += 1
    return compared


@cache
def first_scope() -> dict[str, Any]:
    scope: dict[str, Any] = {}
    assert run(sections()[FIRST], scope) == 1
    return scope


@pytest.mark.parametrize("section", [name for name in sections() if name != FIRST])
def test_every_line_runs_and_shows_what_it_says(section):
    assert run(sections()[section], {"__name__": "docs", **first_scope()}) > 0


def test_every_example_shows_something():
    """An expression of the block has a comment behind it, which `run` compares."""
    silent = []
    for name, blocks in sections().items():
        for line, code in blocks:
            lines = code.splitlines()
            ends = [node.end_lineno for node in ast.parse(code).body if isinstance(node, ast.Expr)]
            if name != FIRST and not any("  # " in lines[(end or 1) - 1] for end in ends):
                silent.append(f"{PAGE.name}:{line}")
    assert silent == []


def named_in_examples() -> set[str]:
    """Names that an example imports from `interventions` and uses."""
    found: set[str] = set()
    for blocks in sections().values():
        tree = ast.parse("\n".join(code for _, code in blocks))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "interventions"
            for alias in node.names
        }
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        found |= imported & used
    return found


def test_every_public_name_has_an_example_and_a_line():
    text = PAGE.read_text(encoding="utf-8")
    missing = set(interventions.__all__) - named_in_examples()
    assert missing == set()
    lines = set(re.findall(r"\*\*`(\w+)`\*\*", text))
    # Told of where they are used.
    assert set(interventions.__all__) - lines == {"GROUP_KINDS"}
    assert lines <= set(interventions.__all__)


def figures() -> list[str]:
    return re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", PAGE.read_text(encoding="utf-8"))


def test_figures_are_there_small_and_on_white():
    assert len(figures()) >= 5
    for figure in figures():
        path = ROOT / "docs" / figure
        assert path.stat().st_size < 120_000, figure
        with Image.open(path) as picture:
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255), figure
            assert picture.width >= 900, figure


def test_the_program_that_draws_them_fits_the_package():
    """It is imported, and names every figure; drawing all takes a minute."""
    file = ROOT / "docs" / "make_figures.py"
    spec = importlib.util.spec_from_file_location("make_figures", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = re.findall(r'^ +save\("([^"]+)"\)$', file.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(f"figures/{name}.png" for name in drawn) == sorted(figures())
