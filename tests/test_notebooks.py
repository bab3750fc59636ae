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
        assert not any(cell.get("outputs") for cell in notebook.cells), path.name
