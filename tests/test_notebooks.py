"""The notebooks run from top to bottom on the embedded models."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NEEDS_SERVER = {"05_on_ndif"}
WITH_FIGURES = {"06_eight_experiments": 8}
"""Committed as they were executed, with so many figures, which are what they are for."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    # Threads that spin while they wait are ruinous on a busy machine.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    if path.stem in NEEDS_SERVER and "MMNEURON_NDIF_URL" not in os.environ:
        pytest.skip("needs an NDIF server: start one with `mmneuron ndif up` and set MMNEURON_NDIF_URL")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))


def test_the_main_job_needs_one_import():
    for name in ("01_find_neurons", "02_switch_them_off"):
        notebook = nbformat.read(NOTEBOOKS[0].with_name(f"{name}.ipynb"), as_version=4)
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        assert re.findall(r"^ *(?:from|import) .*", code, re.MULTILINE) == ["import mmneuron_lens as mm"]


def test_notebooks_are_committed_without_outputs():
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        if path.stem not in WITH_FIGURES:
            assert not any(cell.get("outputs") for cell in notebook.cells), path.name


@pytest.mark.parametrize("name", sorted(WITH_FIGURES))
def test_figures_that_are_committed_are_all_that_is_shown(name):
    """No warning, no progress bar: of every experiment a figure, and beside them plain values."""
    notebook = nbformat.read(NOTEBOOKS[0].with_name(f"{name}.ipynb"), as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it again from the top"
    shown = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in shown} == {"display_data", "execute_result"}
    assert sum("image/png" in output.data for output in shown) == WITH_FIGURES[name]


def test_each_of_the_eight_experiments_has_at_most_ten_lines():
    notebook = nbformat.read(NOTEBOOKS[0].with_name("06_eight_experiments.ipynb"), as_version=4)
    pairs = zip(notebook.cells, notebook.cells[1:], strict=False)
    lines = [len(cell.source.splitlines()) for title, cell in pairs if re.match(r"## \d ", title.source)]
    assert len(lines) == 8
    assert max(lines) <= 10
