"""Files in a run's folder that nobody's run wrote, or that lie elsewhere: named with what to do, or of no account."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_artifact_damage import MADE, counts

from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.gather import Held, Piece
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.runs.folder import counted, file_of, key_of, selected_models
from mmneuron_lens.runs.merging import merge_runs
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.jobs.records import Records

Put = Callable[[Path], Path]
"""Puts something into the folder of a model's counts; where it is."""


def written(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def foreign_tensors(folder: Path) -> Path:
    save_file({"x": torch.ones(2)}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def other_model(folder: Path) -> Path:
    one = counts()
    Counts("other", "medical", one.active, one.tokens, one.kinds, 3, {}).save(folder / "other.safetensors", {})
    return folder / "other.safetensors"


OF_NO_ACCOUNT: dict[str, Put] = {
    "of the Finder": lambda folder: written(folder / ".DS_Store"),
    "beside a copy of macOS": lambda folder: written(folder / "._medical.safetensors"),
    "a text": lambda folder: written(folder / "notes.txt"),
    "a subfolder": lambda folder: written(folder / "old" / "medical.txt"),
    "among models": lambda folder: written(folder.parent / ".DS_Store"),
    "a hidden folder": lambda folder: written(folder.parent / ".git" / "medical.safetensors"),
    "a partial file": lambda folder: written(folder / ".medical.safetensors.0123456789abcdef.partial"),
}
NAMED: dict[str, Put] = {
    "a second name": lambda folder: shutil.copy(folder / "medical.safetensors", folder / "backup.safetensors"),
    "a download": lambda folder: shutil.copy(folder / "medical.safetensors", folder / "medical (1).safetensors"),
    "another model's": other_model,
    "other tensors": foreign_tensors,
    "an empty file": lambda folder: written(folder / "empty.safetensors", b""),
    "a folder of that name": lambda folder: written(folder / "a.safetensors" / "x").parent,
    "beside the models": lambda folder: shutil.copy(folder / "medical.safetensors", folder.parent / "m.safetensors"),
    "a copied model": lambda folder: shutil.copytree(folder, folder.parent / "copy") / "common.safetensors",
    "another kind": lambda folder: MADE["means"].save(folder / "m.safetensors") or folder / "m.safetensors",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for domain in ("common", "medical"):
        one = counts()
        made = Counts("m", domain, one.active, one.tokens, one.kinds, 3, {"seed": 1})
        made.save(file_of(tmp_path, "counts", "m", domain), {"model id": "m", "domain": domain})
    MADE["selection"].save(file_of(tmp_path, "selection", "m"), {})
    return tmp_path


def readers(run: Path) -> dict[str, Callable[[], object]]:
    """What reads the counts of a run, and what it finds in them."""
    return {
        "select": lambda: [[one.domain for one in files.values()] for files in counted(run)],
        "page": lambda: [one.domain for one in ModelRun(run, "m").counts],
        "merge": lambda: [file.name for file in merge_runs([run], run.parent / "merged")],
    }


@pytest.mark.parametrize("what", OF_NO_ACCOUNT)
def test_what_is_no_artifact_changes_nothing(run: Path, what: str) -> None:
    before = {name: read() for name, read in readers(run).items()}
    OF_NO_ACCOUNT[what](run / "counts" / "m")
    assert {name: read() for name, read in readers(run).items()} == before
    assert before["select"] == [["common", "medical"]]


@pytest.mark.parametrize("what", NAMED)
def test_an_artifact_too_many_is_named(run: Path, what: str) -> None:
    file = Path(NAMED[what](run / "counts" / "m"))
    # The page reads the folder of its own model alone.
    own = {name for name in ("select", "page", "merge") if name != "page" or file.parent.name == "m"}
    for name in own:
        with pytest.raises(InvalidValue) as caught:
            readers(run)[name]()
        text = str(caught.value)
        assert text.startswith(f"{file}: "), (name, text)
        assert any(step in text for step in ("delete it", "check the path", "move this one")), (name, text)


def test_counts_that_changed_places_are_named(run: Path) -> None:
    first, second = (file_of(run, "counts", "m", domain) for domain in ("common", "medical"))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    for name, read in readers(run).items():
        with pytest.raises(InvalidValue, match="move it out of the folder, or delete it"):
            read()
        assert name


def test_a_copied_selection_is_named(run: Path) -> None:
    shutil.copy(file_of(run, "selection", "m"), run / "selection" / "m (1).safetensors")
    with pytest.raises(InvalidValue, match=r"m \(1\)\.safetensors: holds selection of m, which lie in selection/m\."):
        selected_models(run)


def test_files_among_the_pieces_stay_and_are_not_used(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path, say=said.append)
    pieces = store.pieces(key_of("means", "m", facts={}))
    steps = 2 * [Step(0, ())]
    pieces.keep(Held(0, 1, Piece(0, {"x": torch.ones(1)})))
    kept = pieces.folder / "000000-000001.safetensors"
    names = ["000000-000001 (1).safetensors", "notes.safetensors", "notes.txt", ".DS_Store", "a-b.safetensors"]
    for name in names:
        shutil.copy(kept, pieces.folder / name)
    # Under the name of other steps.
    shutil.copy(kept, pieces.folder / "000001-000002.safetensors")
    assert [(one.first, one.last) for one in pieces.held(steps)] == [(0, 1)]
    (line,) = said
    assert line.startswith(f"{kept.with_stem('000001-000002')}: is no piece of this value: name is not that")
    pieces.keep(Held(0, 2, Piece(0, {"x": torch.ones(1)})))
    assert not kept.exists()
    pieces.clear()
    assert sorted(file.name for file in pieces.folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".", "", "a\0b", "a\nb", "x" * 300, "run", "a\\b"])
def test_a_job_has_a_file_in_its_folder_or_none(tmp_path: Path, name: str) -> None:
    records = Records(tmp_path / "run" / "jobs")
    for ask in (
        lambda: records.record(name),
        lambda: records.write(Records(None).record(name)),
        lambda: records.forget(name),
        lambda: records.describe("", "", "", [name], []),
    ):
        with pytest.raises(MMNeuronError, match="is no name of a job"):
            ask()
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_record_of_a_job_that_was_changed_is_sent_again_and_never_used(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(records.record("one"), state="submitted", job="1", facts={"seen": ["a"]})
    file = tmp_path / "one.json"
    content = file.read_bytes()
    for damaged in (content.replace(b'"a"', b'"b"'), content[:-5], b"", b"{}", b"\xff" * 9):
        file.write_bytes(damaged)
        again = Records(tmp_path).record("one")
        assert (again.state, again.job, again.facts) == ("waiting", None, {})
    # Under another job's name.
    (tmp_path / "two.json").write_bytes(content)
    assert Records(tmp_path).record("two").job is None
    records.describe("t", "h", "m", ["one"], ["count"])
    run = tmp_path / "run.json"
    run.write_bytes(run.read_bytes().replace(b'"one"', b'"two"'))
    with pytest.raises(InvalidValue, match=r"run\.json: is damaged"):
        _ = records.run
