"""Tables that the reference takes from the package itself: public names, sites, what built-in interventions act on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import interventions
from interventions import GROUP_KINDS, SITES, Intervention

DOCS = Path(__file__).parents[1]
BUILT_IN = "reference/built-in.md"
EXAMPLES = "interventions.md"
ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
EXAMPLE = re.compile(r"^(?=\*\*`\w+`\*\*)(.*)$", re.MULTILINE)
NAME = re.compile(r"\*\*`(\w+)`\*\*")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts tables at their marks, anchors where examples begin, and links to these behind entries of the reference."""
    source = page.file.src_uri
    if source == EXAMPLES:
        return EXAMPLE.sub(_anchored, markdown)
    if source == BUILT_IN:
        markdown = "".join(map(_with_table, re.split(r"(?=^## )", markdown, flags=re.MULTILINE)))
    if source.startswith("reference/"):
        markdown = ENTRY.sub(_with_example, markdown)
        markdown = re.sub(r"<!-- names (\w+) -->", lambda found: names_table(found[1]), markdown)
        return markdown.replace("<!-- sites -->", sites_table()).replace("<!-- kinds -->", kinds_table())
    return markdown


def names_table(package: str) -> str:
    """A row per public name of a package, with the page that tells of it."""
    there = documented()
    module = import_module(package)
    rows = []
    for name in sorted(module.__all__, key=str.lower):
        path = path_of(name, there)
        rows.append((f"[`{name}`]({there[path]}#{path})", first_line(getattr(module, name))))
    return table(("name", "what it is"), rows)


def documented() -> dict[str, str]:
    """By dotted path, the page of the reference that tells of it."""
    pages = sorted((DOCS / "reference").glob("*.md"))
    return {path: page.name for page in pages for path in ENTRY.findall(page.read_text(encoding="utf-8"))}


def path_of(name: str, there: Collection[str]) -> str:
    """The path under which a public name is told of; of one that is called as its module, by way of that."""
    paths = (f"mmneuron_lens.{name}", f"interventions.{name}", f"interventions.{name}.{name}")
    return next(path for path in paths if path in there)


def first_line(value: Any) -> str:
    """What something is, in a line."""
    told = CONSTANTS.get(id(value)) or inspect.getdoc(value) or ""
    return " ".join(told.split("\n\n")[0].split())


CONSTANTS = {
    id(SITES): "Every standard site by name, in forward order.",
    id(interventions.NEURON_SITES): "The sites whose last axis is the paper's neurons.",
    id(GROUP_KINDS): "The kinds of position in each group.",
}


def sites_table() -> str:
    """A row per site."""
    return table(
        ("site", "axes", "in every layer", "positions", "what it is"),
        [
            (f"`{one.name}`", one.axes, "yes" if one.per_layer else "", one.group or "", one.says)
            for one in SITES.values()
        ],
    )


def kinds_table() -> str:
    """A row per group of positions."""
    return table(("positions", "kinds"), [(group, ", ".join(kinds)) for group, kinds in GROUP_KINDS.items()])


def built_in_table(paths: list[str]) -> str:
    """A row per intervention: what it does where, how batches become one, what the run gives it, and its example."""
    rows = []
    for path in paths:
        name = path.rpartition(".")[2]
        one = getattr(interventions, name)
        axes = {SITES[site].axes for site in one.sites}
        over = one.over if isinstance(one.over, str) else "a fold" if one.over else ""
        given = ", ".join(f"`{argument}`" for argument in one.bindings)
        at = ", ".join(f"`{site}`" for site in one.sites)
        example = f"[example](../{EXAMPLES}#{name})"
        rows.append((f"[`{name}`](#{path})", one.mode, at, ", ".join(axes), over, given, example))
    return table(("name", "mode", "at", "axes", "batches", "the run gives", ""), rows)


def _with_table(section: str) -> str:
    paths = [one for one in ENTRY.findall(section) if isinstance(_public(one), Intervention)]
    return section.replace("<!-- table -->", built_in_table(paths) if paths else "")


def _with_example(found: re.Match[str]) -> str:
    """An entry with a link to the example of what it tells of, where there is one."""
    package, name = found[1].partition(".")[0], found[1].rpartition(".")[2]
    there = package == "interventions" and name in _names_with_examples()
    return f"{found[0]}\n\n[Example](../{EXAMPLES}#{name})" if there else found[0]


@cache
def _names_with_examples() -> set[str]:
    page = (DOCS / EXAMPLES).read_text(encoding="utf-8")
    return {name for line in EXAMPLE.findall(page) for name in NAME.findall(line)}


def _public(path: str) -> Any:
    return getattr(interventions, path.rpartition(".")[2])


def _anchored(found: re.Match[str]) -> str:
    return "".join(f'<a id="{name}"></a>' for name in NAME.findall(found[0])) + found[0]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
