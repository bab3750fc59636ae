"""The notebooks: what is stored may be shown, and they come out so again when they are executed."""

from __future__ import annotations

import ast
import os
import re
import sys
from base64 import b64encode
from functools import cache
from io import BytesIO
from typing import Any

import nbformat
import pytest
from notebook_outputs import ROOT, differences
from PIL import Image, ImageChops, ImageStat
from PIL.PngImagePlugin import PngInfo

sys.path.append(str(ROOT / "notebooks"))
import execute as store
import thumbnails

NAMES = store.names()
DEEP = r"^ *(?:from|import) +((?:mmneuron_lens|interventions)\.[\w.]+)"


@cache
def fresh(name: str) -> Any:
    """Executed once, however many tests ask."""
    return store.executed(name)


def code_of(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_comes_out_as_it_is_stored(name):
    if name in store.NEEDS_SERVER and "MMNEURON_NDIF_URL" not in os.environ:
        pytest.skip("needs an NDIF server: start one with `mmneuron ndif up` and set MMNEURON_NDIF_URL")
    assert store.faults(fresh(name)) == []
    assert differences(store.read(name), fresh(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_can_be_shown(name):
    assert store.faults(store.read(name)) == [], f"store it anew: python notebooks/execute.py {name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_what_changes(name):
    """Executed again, it differs only where its numbers do."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert nbformat.writes(store.tidy(store.read(name))) == path.read_text(encoding="utf-8").rstrip("\n")
    nbformat.validate(store.read(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_and_says_what_to_change(name):
    cells = store.read(name).cells
    titles = [
        line for cell in cells if cell.cell_type == "markdown" for line in re.findall(r"^#+ .*", cell.source, re.M)
    ]
    assert re.fullmatch(rf"# {int(name[:2])} · \S.*", titles[0])
    assert titles[-1] == "## On a real 7B checkpoint"
    assert 5 <= sum(cell.cell_type == "code" for cell in cells) <= 12
    assert max(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code") <= 24
    last = cells[-1]
    assert last.cell_type == "markdown"
    assert "llava-hf/llava-v1.6-vicuna-7b-hf" in last.source
    # Every example there is at least Python.
    for block in re.findall(r"```python\n(.*?)```", last.source, re.S):
        ast.parse(block)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_public_names_alone(name):
    assert re.findall(DEEP, code_of(store.read(name)), re.M) == []


def test_the_main_job_needs_one_import():
    for name in ("01_find_neurons", "03_switch_them_off"):
        ours = re.findall(r"^ *(?:from|import) (?:mmneuron_lens|interventions).*", code_of(store.read(name)), re.M)
        assert ours == ["import mmneuron_lens as mm"]


def test_the_gallery_shows_every_notebook():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for name in NAMES:
        shown = rf"\[!\[[^\]]{{8,}}\]\(figures/gallery/{name}\.png\)\]\(\.\./notebooks/{name}\.ipynb\)"
        assert len(re.findall(shown, page)) == 1, name
        assert re.search(rf"\*\*\[{int(name[:2])} [^\]]+\]\(\.\./notebooks/{name}\.ipynb\)\*\*\n\n +\S.*\.\n", page), (
            name
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_is_that_of_the_stored_figure(name):
    kept = (ROOT / "docs" / "figures" / "gallery" / f"{name}.png").read_bytes()
    assert len(kept) <= thumbnails.LARGEST
    with Image.open(BytesIO(kept)) as here, Image.open(BytesIO(thumbnails.made(name))) as there:
        assert here.size == there.size == thumbnails.SIZE
        # Libraries of other versions may round and compress differently.
        assert ImageStat.Stat(ImageChops.difference(here.convert("L"), there.convert("L"))).mean[0] < 2


def cell_of(*outputs: Any) -> Any:
    cell = nbformat.v4.new_code_cell("x", execution_count=1, outputs=[*outputs])
    return nbformat.v4.new_notebook(cells=[cell])


def picture(width: int, height: int, **written: str) -> Any:
    buffer, info = BytesIO(), PngInfo()
    for name, text in written.items():
        info.add_text(name, text)
    Image.new("RGB", (width, height)).save(buffer, format="PNG", pnginfo=info)
    data = {"image/png": b64encode(buffer.getvalue()).decode(), "text/plain": "figure"}
    return nbformat.v4.new_output("display_data", data)


def said(text: str, stream: str = "stdout") -> Any:
    return nbformat.v4.new_output("stream", name=stream, text=text)


def shown(**data: str) -> Any:
    return nbformat.v4.new_output("display_data", {f"text/{kind}": text for kind, text in data.items()})


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (said("loading", "stderr"), "stderr: loading"),
        (said("100%|██████| 131/131"), "a progress bar"),
        (said("3.2 it/s"), "a progress bar"),
        (said("['Ġimaging']"), "a tokenizer's byte"),
        (said("Writing /tmp/here/mine.py"), "a path of this machine"),
        (shown(plain="<zip object at 0x7f3a2b10c0>"), "the address of an object"),
        (shown(html="<b>UserWarning: no</b>", plain="no"), "a warning"),
        (said("took 31 ms"), "a time"),
        (picture(9, 9, Software="Matplotlib version 3.10"), "names the software"),
        (shown(html="<b>x</b>"), "HTML without plain text"),
        (nbformat.v4.new_output("error", ename="KeyError", evalue="'x'"), "KeyError: 'x'"),
    ],
)
def test_a_fault_in_an_output_is_named(output, fault):
    assert store.faults(cell_of(picture(9, 9), said("llm.mlp.act 3/17"))) == []
    (found,) = store.faults(cell_of(picture(9, 9), output))
    assert fault in found


def test_cells_out_of_order_and_missing_figures_are_faults():
    notebook = cell_of(said("x"))
    notebook.cells[0].execution_count = 3
    assert store.faults(notebook) == ["cells were executed as [3], not one after another", "no figure"]


TABLE = "<table><thead><tr><th>{}</th></tr></thead><tbody>{}</tbody></table>"
ROW = "<tr><td>1</td></tr>"


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        (picture(100, 50), picture(110, 50), None),
        (picture(100, 50), picture(125, 50), "a figure is (100, 50) stored, (125, 50) executed"),
        (said("a 1\nb 2"), said("a 3\nb 4"), None),
        (said("a\nb"), said("a"), "2 lines are stored, 1 were printed"),
        (shown(plain="float32 [4, 512]"), shown(plain="float32 [4, 511]"), "shapes are"),
        (
            shown(html=TABLE.format("a", ROW), plain="x"),
            shown(html=TABLE.format("a", ROW * 2), plain="x"),
            "tables are",
        ),
        (shown(html=TABLE.format("a", ROW), plain="x"), shown(html=TABLE.format("b", ROW), plain="x"), "tables are"),
        (said("x"), shown(plain="x"), "stored shows"),
    ],
)
def test_executions_differ_by_shapes_and_counts_not_by_numbers(old, new, difference):
    found = differences(cell_of(old), cell_of(new))
    assert (found == []) if difference is None else (difference in found[0])
