"""The folder of a run, its lock or its pieces taken away while it is written: said, and never passed over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_lens
from drawn_corpus import files_of, write_corpus

from interventions.errors import StorageFailed
from mmneuron_lens import Lens, load_corpus
from mmneuron_lens.artifacts.controls import HalvesOverlap
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.batching import gather as gathering
from mmneuron_lens.batching.gather import Shard
from mmneuron_lens.report.page import Page, write
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.identify import select_stage
from mmneuron_lens.runs.problems import say_problems
from mmneuron_lens.runs.store import Store


@pytest.fixture(scope="module")
def lens() -> Lens:
    return tiny_lens("llava_next")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_corpus(write_corpus(tmp_path_factory.mktemp("corpus"), images=3))


def counting(lens: Lens, corpus: Any, out: Path, then: Callable[[], Any] = lambda: None, **settings: Any) -> Any:
    """Counts; `then` is done before the last of the steps of the second domain."""

    def progress(work: Iterable[Any], title: str) -> Iterable[Any]:
        steps = list(work)
        for number, one in enumerate(steps):
            if "medical" in title and number == len(steps) - 1:
                then()
            yield one

    return count_stage(lens, corpus.by_domain(), Store(out), batch_size=1, progress=progress, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(lens: Lens, corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    counting(lens, corpus, out)
    return files_of(out)


def replaced_by_a_file(out: Path) -> None:
    shutil.rmtree(out)
    out.write_text("x")


def replaced_by_another(out: Path) -> None:
    shutil.rmtree(out)
    out.mkdir()


AWAY: dict[str, Callable[[Path], Any]] = {
    "deleted": shutil.rmtree,
    "moved": lambda out: out.rename(out.with_name("moved")),
    "a file": replaced_by_a_file,
    "another folder": replaced_by_another,
}


@pytest.mark.parametrize("way", AWAY)
@pytest.mark.parametrize("shard", [Shard(1, 1), Shard(2, 2)], ids=str)
def test_a_folder_that_is_taken_away_is_said(
    lens: Lens, corpus: Any, alone: dict[str, bytes], tmp_path: Path, way: str, shard: Shard
) -> None:
    out = tmp_path / "run"
    with pytest.raises(StorageFailed) as caught:
        counting(lens, corpus, out, lambda: AWAY[way](out), shard=shard)
    assert str(caught.value).startswith(f"{out}: was deleted, moved or replaced while it was being written to")
    if out.is_file():
        out.unlink()
    counting(lens, corpus, out)
    assert files_of(out) == alone


def test_a_lock_that_is_deleted_is_said(lens: Lens, corpus: Any, alone: dict[str, bytes], tmp_path: Path) -> None:
    def unlocked() -> None:
        for file in (tmp_path / ".locks").glob("*medical*.lock"):
            file.unlink()
        # And another process takes the value.
        counting(lens, corpus, tmp_path)

    with pytest.raises(StorageFailed, match=r"medical.*\.lock: was deleted while a value was being written"):
        counting(lens, corpus, tmp_path, unlocked)
    assert files_of(tmp_path) == alone


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["deleted", "emptied"])
def test_pieces_that_are_taken_away_are_said_and_made_again(
    lens: Lens, corpus: Any, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.setattr(gathering, "SECONDS", 0.0)

    def lost() -> None:
        damage(min((tmp_path / "counts").rglob("medical.pieces/*.safetensors")))

    with pytest.raises(StorageFailed, match=r"medical\.pieces: pieces that were kept there were deleted or damaged"):
        counting(lens, corpus, tmp_path, lost)
    counting(lens, corpus, tmp_path)
    assert files_of(tmp_path) == alone


def test_a_page_whose_folder_is_taken_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmneuron_lens.report import page as pages

    monkeypatch.setattr(pages, "drawn", lambda _: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(StorageFailed, match="run: was deleted, moved or replaced"):
        write(Page("t", "l", (), ()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_controls_are_an_error_and_not_controls_that_were_not_run(lens: Lens, tmp_path: Path) -> None:
    corpus = load_corpus(write_corpus(tmp_path / "corpus", images=8))
    out = tmp_path / "run"
    made = count_stage(lens, corpus.by_domain(), Store(out))
    rule: dict[str, Any] = {"fraction": 0.2, "percentile": 0.6, "permutations": 2}
    (found,) = select_stage(out, Store(out), **rule)
    assert not found.controls.missing
    model = next(one.model for one in made.values() if one)
    file = file_of(out, "controls", model, "halves_overlap")
    HalvesOverlap.load(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"halves_overlap\.safetensors: is damaged"):
        select_stage(out, Store(out), **rule)


def test_what_a_kill_left_of_the_problems_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".problems.txt.0123456789abcdef.partial"
    left.write_text("half")
    folder = write_corpus(tmp_path / "corpus", images=1)
    with open(folder / "questions.jsonl", "a") as rows:
        rows.write("no row")
    problems = load_corpus(folder).problems
    say_problems(problems, tmp_path, lambda said: None)
    assert (tmp_path / "problems.txt").read_text() == f"{problems}\n"
    assert not left.exists()
