"""The command line as its page describes it: examples that run, names as in Python, endings as they are listed."""

from __future__ import annotations

import errno
import inspect
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer.main
from typer.testing import CliRunner

import mmneuron_lens as mm
from mmneuron_lens import completions
from mmneuron_lens.cli import app
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.paper.demo import QUICK, QUICK_PLAN, demo
from mmneuron_lens.runs.store import Store
from mmneuron_lens.user_errors import REPORT, said

ROOT = Path(__file__).parent.parent

sys.path.insert(0, str(ROOT / "docs"))

import make_command_line as page  # noqa: E402

COMMANDS = dict(
    one for name, command in typer.main.get_command(app).commands.items()
    for one in page.commands_of(f"mmneuron {name}", command)
)  # fmt: skip


def test_the_page_of_the_command_line_is_that_of_the_program():
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.written(text), "run: python docs/make_command_line.py"


@pytest.mark.parametrize("title", COMMANDS)
def test_every_command_has_an_example_that_it_takes(title):
    words = shlex.split(page.example_of(COMMANDS[title]))
    named = title.split()
    assert words[: len(named)] == named
    with COMMANDS[title].make_context(title, words[len(named) :]):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a newcomer's after `mmneuron demo --quick`, with fewer pictures."""
    folder = tmp_path_factory.mktemp("folder")
    torch.set_num_threads(1)
    plan = replace(QUICK_PLAN, identification_images=5, example_images=2, permutations=2)
    demo(Store(folder / "runs" / "look"), models=[QUICK], plan=plan)
    return folder


def test_the_examples_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    few = {
        "count": "--images 3 --questions-per-image 1",
        "select": "",
        "show": "",
        "neurons": "",
        "ablate": "--skip-images 3 --questions-per-image 1 --random-draws 1 --max-new-tokens 1",
        "describe": "",
        "jobs list": "",
    }
    for name, amounts in few.items():
        words = shlex.split(f"{page.example_of(COMMANDS[f'mmneuron {name}'])} {amounts}")
        result = CliRunner().invoke(app, words[1:], env={"COLUMNS": "60"})
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.stderr}{result.exception!r}"
        assert all(len(line) <= 60 for line in result.stdout.splitlines() if line[:1] in "┃│┏└┡")
    shown = CliRunner().invoke(app, ["show", "runs/mine"]).stdout
    first, *_ = shown.splitlines()
    assert first.startswith("embedded/llava-next: 42 of 4,256 neurons selected as domain-specific: ")
    assert "  accuracy with its own neurons off, against random ones off: in no domain clearly lower" in shown
    assert f"Every neuron: {Path('runs/mine/neurons.csv').resolve()}" in shown
    assert f"Their pictures: {Path('runs/mine/neurons/index.html').resolve()}" in shown


def test_the_quick_demo_is_one_model_without_a_comparison_and_has_no_empty_section(folder):
    run = folder / "runs" / "look"
    html = (run / "index.html").read_text(encoding="utf-8")
    assert "What neurons answer to" in html
    assert "neurons/index.html" in html
    assert "`mmneuron demo` without --quick also switches the neurons off" in html
    assert not list(run.glob("comparison*"))
    assert not list(run.glob("attributions*"))
    assert list((run / "neurons" / "pictures").iterdir())
    refused = CliRunner().invoke(app, ["demo", "--quick", "--model", "smol", "--out", str(run)])
    assert (refused.exit_code, "--model smol means nothing with --quick" in refused.stderr) == (1, True)


# What a command takes beside the functions that it stands for: where things are, and how a text says an object.
OF_THE_SHELL = {"run", "model", "corpus", "out", "plan", "shard", "top", "masks", "write_masks", "stability", "remote"}
OF_OBJECTS = {"factor", "alpha", "gradient_steps"}


@pytest.mark.parametrize(
    ("command", "functions"),
    [
        ("count", [mm.identify]),
        ("select", [mm.identify]),
        ("ablate", [mm.ablate]),
        ("compare", [mm.compare]),
    ],
)
def test_an_option_has_the_name_of_the_parameter(command, functions):
    taken = {"num_beams", "max_new_tokens"} if command in ("ablate", "compare") else set()
    for function in (*functions, mm.Lens, Corpus.some):
        taken |= set(inspect.signature(function).parameters)
    # Of what can be repeated the singular.
    taken |= {name.removesuffix("s") for name in taken} | {"domain"}
    names = {one.name for one in COMMANDS[f"mmneuron {command}"].params} - {"help"}
    assert names - OF_THE_SHELL - OF_OBJECTS - {"method"} <= taken


FAULTS = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "runs/x/counts"), "free some space there"),
    "full output": (OSError(errno.ENOSPC, "No space left on device"), "the output: No space left on device"),
    "no right": (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission denied; give"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/mnt/x"), "name a folder that can be written"),
    "file in a path": (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a part of this path is a file"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "aa"), "give shorter names"),
    "open files": (OSError(errno.EMFILE, "Too many open files", "x"), "ulimit -n 4096"),
    "named and gone": (FileNotFoundError(errno.ENOENT, "No such file", "my/run/a.json"), "my/run/a.json is not there"),
    "memory of the GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried"), "give a smaller --batch-size"),
    "memory of torch": (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        "give a smaller --batch-size",
    ),
    "memory": (MemoryError(), "out of memory"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_machine_is_one_line_with_what_to_do(name, monkeypatch, folder):
    error, line = FAULTS[name]
    assert line in str(said(error, ["show", "my/run"]))

    def raises(*_, **__):
        raise error

    monkeypatch.setattr("mmneuron_lens.cli.print_tables", raises)
    monkeypatch.setattr(sys, "argv", ["mmneuron", "show", "my/run"])
    result = CliRunner().invoke(app, ["show", str(folder / "runs" / "look")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("mmneuron: ")
    assert line in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/of/ours.json"),
        FileNotFoundError("a fault"),
        RuntimeError("a fault"),
    ],
)
def test_a_fault_of_the_program_asks_to_be_reported(error, monkeypatch, folder):
    def raises(*_, **__):
        raise error

    monkeypatch.setattr("mmneuron_lens.cli.print_tables", raises)
    result = CliRunner().invoke(app, ["show", str(folder / "runs" / "look")])
    assert result.exception is error
    assert error.__notes__ == [REPORT]


def run_in_shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell makes of a line in which `mmneuron` is this program."""
    called = f'mmneuron() {{ "{sys.executable}" -m mmneuron_lens "$@"; }}; set -o pipefail; {line}'
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    asked = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(["bash", "-c", called], cwd=folder, env=asked, capture_output=True, timeout=120)


def test_readers_that_go_away_terminals_without_utf8_and_full_disks(folder):
    ended = run_in_shell("mmneuron show runs/look | head -c 1", folder)
    assert (ended.returncode, ended.stderr) == (141, b"")
    plain = run_in_shell("mmneuron show runs/look", folder, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert (plain.returncode, plain.stderr) == (0, b"")
    text = plain.stdout.decode("ascii")
    assert "Vision Encoder +" in text
    full = run_in_shell("mmneuron show runs/look > /dev/full", folder)
    assert (full.returncode, full.stderr.decode().splitlines()) == (
        1,
        ["mmneuron: the output: No space left on device; free some space there, or name another folder."],
    )


def test_a_shell_is_offered_models_runs_methods_and_domains(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert completions.runs("runs/l") == ["runs/look"]
    assert {"runs/look", "runs"} <= set(completions.runs(""))
    assert "runs/look/corpus" not in completions.runs("")
    assert completions.models("embedded/i") == ["embedded/idefics3", "embedded/instructblip"]
    assert completions.several_methods("dape,ma") == ["dape,manu", "dape,margin"]
    assert completions.domains("m") == ["medical"]
    line = {"_MMNEURON_COMPLETE": "complete_bash", "COMP_WORDS": "mmneuron show runs/l", "COMP_CWORD": "2"}
    assert run_in_shell("mmneuron", folder, **line).stdout.split() == [b"runs/look"]
