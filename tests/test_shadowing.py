"""A user's own `interventions.py`: the error says in one line which file was taken for the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jupyter_client
import pytest

ROOT = Path(__file__).parent.parent
SAID = "is taken for the package 'interventions' that mmneuron-lens brings; rename it, and start Python again."


def run(*command: str, folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """A command in a folder, with both packages found behind whatever Python puts first."""
    there = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=there)


def last(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    return done.stderr.splitlines()[-1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "interventions.py").write_text("mine = 1\n")
    (tmp_path / "script.py").write_text("import mmneuron_lens\n")
    return tmp_path


def shadowed(file: Path) -> str:
    return f"mmneuron_lens.shadowing.Shadowed: {file} {SAID}"


def test_a_file_beside_the_script(folder, tmp_path_factory):
    done = run(sys.executable, str(folder / "script.py"), folder=tmp_path_factory.mktemp("elsewhere"))
    assert last(done) == shadowed(folder / "interventions.py")
    assert "partially initialized" not in done.stderr


def test_a_file_in_the_working_directory_with_module_and_command(folder):
    assert last(run(sys.executable, "-m", "mmneuron_lens", "--help", folder=folder)) == shadowed(
        folder / "interventions.py"
    )
    on_the_path = run(sys.executable, "-P", "-c", "from mmneuron_lens.cli import app", folder=folder, path=str(folder))
    assert last(on_the_path) == shadowed(folder / "interventions.py")
    # What the command `mmneuron` does: the working directory is not searched.
    assert run(sys.executable, "-P", "-c", "import mmneuron_lens", folder=folder).returncode == 0


def test_a_package_is_named_by_its_folder(folder):
    (folder / "interventions.py").unlink()
    (folder / "interventions").mkdir()
    (folder / "interventions" / "__init__.py").touch()
    assert last(run(sys.executable, "script.py", folder=folder)) == shadowed(folder / "interventions")


def test_a_folder_that_is_no_package_hides_nothing(folder):
    (folder / "interventions.py").unlink()
    (folder / "interventions").mkdir()
    (folder / "interventions" / "notes.py").touch()
    (folder / "script.py").write_text("import mmneuron_lens, interventions.sites; print(interventions.__file__)\n")
    done = run(sys.executable, "script.py", folder=folder)
    assert done.stdout.strip() == str(ROOT / "interventions" / "__init__.py"), done.stderr


def test_a_module_that_is_loaded_already(folder):
    code = "import interventions, sys; sys.path.remove(''); import mmneuron_lens"
    assert last(run(sys.executable, "-c", code, folder=folder)) == shadowed(folder / "interventions.py")


def test_a_folder_that_one_changes_to_later(folder, tmp_path_factory):
    code = f"import mmneuron_lens as mm, os; os.chdir({str(folder)!r}); mm.zero_neurons"
    done = run(sys.executable, "-c", code, folder=tmp_path_factory.mktemp("elsewhere"))
    assert last(done) == shadowed(folder / "interventions.py")


def test_in_a_notebooks_folder(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    manager, client = jupyter_client.manager.start_new_kernel(
        cwd=str(folder), extra_arguments=["--IPKernelApp.capture_fd_output=False"]
    )
    try:
        # IPython puts the notebook's folder, '', behind PYTHONPATH and before what is installed.
        behind = f"sys.path.remove({str(ROOT)!r}); sys.path.insert(sys.path.index('') + 1, {str(ROOT)!r})"
        code = f"import sys; {behind}; import mmneuron_lens"
        reply = client.execute_interactive(code, timeout=60, output_hook=lambda _: None)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert (reply["content"]["ename"], reply["content"]["evalue"]) == (
        "Shadowed",
        f"{folder / 'interventions.py'} {SAID}",
    )
