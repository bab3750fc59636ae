"""The documentation's site: its navigation, its reference, and the hooks that build it; `make docs` builds it all."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import is_typeddict

import pytest
import yaml
from mkdocs.config.base import load_config
from mkdocs.structure.files import get_files
from reference_pages import OURS, entries, fields_of, found_at, functions_of, returned, told_of

import interventions
import mmneuron_lens
from interventions import GROUP_KINDS, SITES, Intervention
from interventions.bindings import Binding
from mmneuron_lens import metrics
from mmneuron_lens.artifacts.artifact import Artifact

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def hook(name):
    """A module of docs/hooks, as mkdocs imports it."""
    spec = importlib.util.spec_from_file_location(f"docs_hooks_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REPOSITORY, TABLES, BUILT, LISTS = map(hook, ("repository_files", "tables", "built_pages", "parameter_lists"))


def shown_as(source):
    """What the hook of tables makes of a page."""
    page = type("Page", (), {"file": type("File", (), {"src_uri": source})})
    return TABLES.on_page_markdown((DOCS / source).read_text(encoding="utf-8"), page, None, None)


def in_navigation():
    """Sources of the pages, in the order of mkdocs.yml."""
    return re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def test_every_page_is_in_the_navigation_once_and_every_entry_is_there():
    sources = [REPOSITORY.in_site(path.relative_to(ROOT).as_posix()) for path in DOCS.rglob("*.md")]
    outside = [path for pattern in REPOSITORY.OUTSIDE for path in ROOT.glob(pattern)]
    sources += [path.relative_to(ROOT).as_posix() for path in outside]
    assert sorted(in_navigation()) == sorted(sources)


def test_nothing_is_taken_from_the_network_or_let_pass():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert not [one for one in settings.get("extra_javascript", []) if "//" in one]
    assert {*settings["validation"]["links"].values(), *settings["validation"]["nav"].values()} == {"warn"}
    (notebooks,) = (one["mkdocs-jupyter"] for one in settings["plugins"] if "mkdocs-jupyter" in one)
    assert notebooks["execute"] is False
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("package", [mmneuron_lens, interventions, metrics], ids=lambda one: one.__name__)
def test_every_public_name_is_told_of(package):
    told = told_of()
    missing = [name for name in package.__all__ if not any(getattr(package, name) is one for one in told)]
    # The page says which benchmarks there are.
    assert missing == (["METRICS"] if package is metrics else [])


def test_every_error_is_told_of():
    sources = [path.read_text(encoding="utf-8") for room in OURS for path in (ROOT / room).rglob("*.py")]
    classes = {name: bases for text in sources for name, bases in re.findall(r"^class (\w+)\((.*)\):$", text, re.M)}
    errors = {"MMNeuronError"}
    while more := {name for name, bases in classes.items() if errors & {*re.findall(r"\w+", bases)}} - errors:
        errors |= more
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^(?:::: [\w.]*\.|        - )([A-Z]\w+)$", page, re.MULTILINE))
    # A row that is not good is named among the problems of its corpus.
    assert errors - told == {"BadRow"}
    assert {"FileMissing", "RunError", "NotFinite"} <= errors


def test_whatever_these_give_back_is_told_of():
    told, missing = told_of(), []
    for value in told:
        for name, function in functions_of(value):
            for kind in returned(function):
                # What is bound is given on as it is; a dictionary is told of where it comes from.
                opaque = is_typeddict(kind) or issubclass(kind, Binding) or getattr(kind, "_is_protocol", False)
                if kind not in told and not opaque:
                    missing.append(f"{name} gives {kind.__name__}")
    assert missing == []


def test_every_parameter_is_told_of():
    """By name, in the docstring of the function or of its class; a first argument `lens` needs no words."""
    missing = []
    for value in told_of():
        for name, function in functions_of(value):
            said = {*re.findall(r"\w+", inspect.getdoc(function) or "")}
            wanted = [one for one in inspect.signature(function).parameters if one not in ("self", "cls", "lens")]
            wanted = [] if name.endswith((".packed", ".unpacked")) else wanted
            missing += [f"{name}: {one}" for one in wanted if one not in said]
    assert missing == []


def test_every_field_is_told_of():
    common = {*re.findall(r"\w+", Artifact.__doc__ or "")}
    missing = []
    for value in told_of():
        if inspect.isclass(value) and hasattr(value, "__dataclass_fields__"):
            said = {*re.findall(r"\w+", value.__doc__ or "")} | (common if issubclass(value, Artifact) else set())
            missing += [f"{value.__name__}.{one}" for one in fields_of(value) if one not in said]
    assert missing == []


def test_the_reference_says_once_of_each():
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    written = [path for page in pages for path in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)]
    assert len(written) == len(set(written)) > 100
    for path in written:
        value = found_at(path)
        assert inspect.getdoc(value), path


def test_built_in_interventions_stand_beside_where_they_act_and_their_example():
    built_in = {name for name in interventions.__all__ if isinstance(getattr(interventions, name), Intervention)}
    told = {path.rpartition(".")[2] for path, name in entries().items() if name == "built-in.md"}
    assert told - built_in == {"load_autoencoder", "Autoencoder"}
    assert built_in - told == set()
    examples = re.findall(r'<a id="(\w+)">', shown_as("interventions.md"))
    assert built_in - {*examples} == set()
    shown = shown_as("reference/built-in.md")
    assert "<!-- table -->" not in shown
    for name in built_in:
        (row,) = re.findall(rf"^\| \[`{name}`\].*$", shown, re.MULTILINE)
        one = getattr(interventions, name)
        assert f"| {one.mode} |" in row
        assert all(f"`{site}`" in row and SITES[site].axes in row for site in one.sites)
        assert f"(../interventions.md#{name})" in row
        assert re.search(rf"^::: [\w.]+\.{name}\n\n\[Example\]\(../interventions.md#{name}\)$", shown, re.MULTILINE)


def test_tables_are_those_of_the_package():
    sites = TABLES.sites_table()
    assert len(sites.splitlines()) == len(SITES) + 2
    assert all(f"| `{site.name}` | {site.axes} |" in sites and site.says in sites for site in SITES.values())
    assert all(f"| {group} | {', '.join(kinds)} |" in TABLES.kinds_table() for group, kinds in GROUP_KINDS.items())
    for package in (mmneuron_lens, interventions):
        names = TABLES.names_table(package.__name__)
        assert len(names.splitlines()) == len(package.__all__) + 2
        assert not [line for line in names.splitlines()[2:] if line.endswith("|  |")]


@pytest.fixture(scope="module")
def site():
    config = load_config(str(ROOT / "mkdocs.yml"))
    return config, REPOSITORY.on_files(get_files(config), config)


LINKS = [
    ("remote.md", "../benchmarks/remote.md", "benchmarks/remote.md"),
    ("reference/lens.md", "../../benchmarks/remote.md#jobs-in-flight", "../benchmarks/remote.md#jobs-in-flight"),
    ("security.md", "../LICENSE", "LICENSE"),
    ("security.md", "../README.md", "index.md"),
    ("long-runs.md", "../notebooks/01_find_neurons.ipynb", "notebooks/01_find_neurons.ipynb"),
    ("language.md", "tracing.md#sites", "tracing.md#sites"),
    ("language.md", "https://ndif.us", "https://ndif.us"),
    ("language.md", "../nothing.md", "../nothing.md"),
    ("CONTRIBUTING.md", "docs/language.md", "language.md"),
    ("CONTRIBUTING.md", "notebooks", "gallery.md"),
    ("benchmarks/remote.md", "remote.py", "remote.py"),
    ("mmneuron_lens/embedded/smol/CARD.md", "../../../docs/language.md", "../../../language.md"),
]


@pytest.mark.parametrize(("page", "link", "becomes"), LINKS)
def test_links_of_a_forge_are_links_of_the_site(site, page, link, becomes):
    config, files = site
    source = files.get_file_from_path(page)
    assert source is not None
    told = type("Page", (), {"file": source})
    written = REPOSITORY.on_page_markdown(f"[it]({link}) and `[it]({link})`, [a][b]", told, config, files)
    assert written == f"[it]({becomes}) and `[it]({link})`, [a]\\[b]"


def test_a_built_page_that_is_wrong_is_named(tmp_path):
    good = (
        '<a href="b.html#there">b</a><a href="https://ndif.us">out</a><a href="#x"><img src="data:image/png;base64,A">'
    )
    (tmp_path / "a.html").write_text(f'<p id="x">{good}')
    other = '<h1 id="there">B</h1><a href="a.html">a</a><link rel="canonical" href="https://x.org">'
    (tmp_path / "b.html").write_text(other)
    assert BUILT.problems(tmp_path) == []
    (tmp_path / "a.html").write_text(
        '<a href="c.html"></a><a href="b.html#here"></a><script src="https://cdn.org/x.js"></script>'
        '<link rel="stylesheet" href="//fonts.org/a.css"><img src="https://x.org/a.png"><a href="#y">'
    )
    (tmp_path / "a.css").write_text("p { background: url(https://x.org/b.png) }")
    assert BUILT.problems(tmp_path) == [
        "a.html: 'c.html' leads to no file of the site",
        "a.html: 'b.html#here' has no such place on b.html",
        "a.html: '#y' has no such place on a.html",
        "a.html: 'https://cdn.org/x.js' is fetched from elsewhere",
        "a.html: '//fonts.org/a.css' is fetched from elsewhere",
        "a.html: 'https://x.org/a.png' is fetched from elsewhere",
        "a.css: fetches from elsewhere",
    ]


def test_notebooks_lose_what_would_be_fetched_and_nothing_else():
    kept = "<script>\nlet own = 1;\n</script><p>MathJax</p>"
    library = '<script src="https://cdn.org/mathjax.js?config=x"> </script><script>MathJax.Hub.Config({});</script>'
    diagrams = '<script type="module">await import("https://cdn.org/mermaid.mjs")</script><script src=""></script>'
    notebook = type("Page", (), {"file": type("File", (), {"src_uri": "notebooks/a.ipynb"})})
    assert BUILT.on_page_content(kept + library + kept + diagrams + kept, notebook, None, None) == kept * 3


def test_names_of_parameters_are_shown_as_code():
    written = "Says.\n\n- run: the folder. site: which: one.\n- top_k, chunk: as of `x`\n  - more\n- `a`: b"
    shown = "Says.\n\n- `run`: the folder. `site`: which: one.\n- `top_k`, `chunk`: as of `x`\n  - more\n- `a`: b"
    assert LISTS.shown(written) == shown
    assert LISTS.unpadded("' neuron'") == "'neuron'"
    assert LISTS.unpadded("'batch token'") == "'batch token'"


def test_lists_begin_behind_an_empty_line(site):
    """A forge begins a list without one, the site does not."""
    config, files = site
    page = type("Page", (), {"file": files.get_file_from_path("remote.md")})
    written = "Says:\n- one\n  more\n- two\n\n```\na\n- b\n```\nIt `is`\n1. one\n2. two\n\n| a |\n- c"
    shown = "Says:\n\n- one\n  more\n- two\n\n```\na\n- b\n```\nIt `is`\n\n1. one\n2. two\n\n| a |\n- c"
    assert REPOSITORY.on_page_markdown(written, page, config, files) == shown
