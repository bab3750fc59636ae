"""`mmneuron jobs resume` runs the command that started a run's jobs, in its folder, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mmneuron_lens
from mmneuron_lens.cli import app
from mmneuron_lens.runtime.jobs.records import Records

COUNT = ("count", "--model", "embedded/llava-next", "--corpus", "corpus", "--out", "run")


def started_by(*words: str) -> Path:
    """A run in the folder `run` here, of which a job is in flight, started by this command here."""
    run = Path.cwd() / "run"
    records = Records(run / "counts" / "tiny" / "common.pieces" / "jobs")
    records.describe("counting common", "http://127.0.0.1:1", "a model", ["0-1"], words)
    return run


def resume(run: Path | str):
    return CliRunner().invoke(app, ["jobs", "resume", str(run)])


class Replaced(Exception):
    """In place of a process that is another program from then on."""


def test_resume_runs_the_command_where_it_was_given(tmp_path, monkeypatch):
    """Whatever folder one stands in: paths of the command are those of the folder it was given in."""
    (tmp_path / "given").mkdir()
    monkeypatch.chdir(tmp_path / "given")
    started_by(*COUNT)
    ran = []

    def execute(program, words, environment):
        ran.append((program, words, environment, os.getcwd()))
        raise Replaced

    monkeypatch.setattr(os, "execve", execute)
    monkeypatch.setenv("PYTHONPATH", f"beside{os.pathsep}{os.pathsep}/there")
    monkeypatch.chdir(tmp_path)
    resumed = resume("given/run")
    assert isinstance(resumed.exception, Replaced)
    assert f"In {tmp_path / 'given'}: mmneuron count --model embedded/llava-next" in resumed.output
    ((program, words, environment, where),) = ran
    assert (program, words) == (sys.executable, [sys.executable, "-m", "mmneuron_lens", *COUNT])
    assert where == str(tmp_path / "given")
    assert environment["PYTHONPATH"] == f"{tmp_path / 'beside'}{os.pathsep}/there"


def test_resume_imports_nothing_that_lies_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mmneuron_lens", "torch", "typer", "interventions"):
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "__main__.py"):
            (tmp_path / name / file).write_text("open('ran', 'w').close()\n")
    run = started_by(*COUNT)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}{Path(mmneuron_lens.__file__).parents[1]}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # Its corpus is not there, which ends it when everything is imported.
    # In a process of its own, which becomes that of the command.
    command = [sys.executable, "-c", "from mmneuron_lens.cli import app; app()", "jobs", "resume", str(run)]
    environment = {**os.environ, "PYTHONPATH": f".{os.pathsep}{Path(mmneuron_lens.__file__).parents[1]}"}
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ndif", "down"), "not one of the commands count, demo, paper"),
        (("merge", "a", "--out", "run"), "not one of the commands"),
        (("jobs", "resume", "run"), "not one of the commands"),
        (("--help",), "not one of the commands"),
        (("-c", "print()"), "not one of the commands"),
        ((*COUNT, "--domain", "\x1b[2J"), "not one of the commands"),
        ((*COUNT[:-1], "../elsewhere"), "its command writes to .*elsewhere, and this run is"),
        ((*COUNT, "--out", "/etc"), "its command writes to /etc"),
        (("demo",), "its command writes to .*runs/demo"),
        (("demo", "--quick"), "its command writes to .*runs/look"),
        (("paper", "--plan", "plan.toml"), "its command writes to .*planned"),
        (("paper", "--plan", "absent.toml"), "cannot be read"),
        ((*COUNT, "--run-this"), "cannot be read"),
        ((*COUNT, "--help"), "cannot be read"),
        (("count", "--out", "run"), "cannot be read"),
    ],
)
def test_resume_runs_no_other_command_and_writes_nowhere_else(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text('out = "planned"\n')
    run = started_by(*words)
    monkeypatch.setattr(os, "execve", lambda *given: pytest.fail("it ran"))
    result = resume(run)
    assert result.exit_code == 1
    assert re.search(rf"run\.json: .*{said}", result.output, re.DOTALL), result.output
    assert "\x1b" not in result.output


def test_a_plan_that_names_the_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text('out = "run"\n')
    ran = []
    monkeypatch.setattr(os, "execve", lambda *given: ran.append(given))
    assert resume(started_by("paper", "--plan", "plan.toml")).exit_code == 0
    assert len(ran) == 1


def test_resume_stands_in_no_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "given").mkdir()
    monkeypatch.chdir(tmp_path / "given")
    run = started_by(*COUNT)
    run = run.rename(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").rmdir()
    result = resume(run)
    assert result.exit_code == 1
    assert "which is no folder here" in result.output
