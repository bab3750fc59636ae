"""A store: each value made once, read by its own key alone, and never replaced by another one unasked."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_corpus import files_of

from interventions.errors import InvalidValue, StorageFailed
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.artifacts.means import Means
from mmneuron_lens.artifacts.official_scores import OfficialScores
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.gather import Held, Keeper, Memory, Piece, Shard, add, by_group, gather
from mmneuron_lens.runs.folder import key_of
from mmneuron_lens.runs.keys import SHOWN, Key, StoreConflict, differences, refusal
from mmneuron_lens.runs.store import Store, StoreBusy

STEPS = [Step(number // 3, ()) for number in range(6)]
"""Two groups of three."""

FACTS = {"fingerprint": "f" * 64, "questions": {"medical": "1" * 64}, "batch size": 32}


def key(**changes: Any) -> Key:
    return key_of("means", "m", facts={**FACTS, **changes})


def means(*values: float) -> Means:
    return Means("m", {"llm.mlp.act": torch.tensor([values], dtype=torch.float64)}, {})


class Stopped(Exception):
    """What stops a value in the middle of being made."""


class Summing:
    """Makes means out of steps, and knows which it ran; stopped before one of them, if asked."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.ran = stop, list[int]()

    def __call__(self, keeper: Keeper) -> Means:
        def run(step: Step, _: Any) -> Piece:
            place = next(number for number, one in enumerate(STEPS) if one is step)
            if place == self.stop:
                raise Stopped
            self.ran.append(place)
            return Piece(step.group, {"x": torch.tensor([1.0 + place, 10.0**-place], dtype=torch.float64)})

        groups = by_group(gather(STEPS, run, add, keeper=keeper), add)
        return means(*(float(value) for group in sorted(groups) for value in groups[group].tensors["x"]))


def never(keeper: Keeper) -> Any:
    raise AssertionError("made again")


# --- a value ---


def test_a_value_is_made_once_and_read_from_then_on(tmp_path: Path) -> None:
    said: list[str] = []
    store, made = Store(tmp_path, say=said.append), Summing()
    first = store.get_or_make(key(), made, Means, what="averaging")
    written = files_of(tmp_path)
    again = Store(tmp_path, say=said.append).get_or_make(key(), never, Means, what="averaging")
    assert torch.equal(again.values["llm.mlp.act"], first.values["llm.mlp.act"])
    assert files_of(tmp_path) == written == {"means/m.safetensors": written["means/m.safetensors"]}
    assert (made.ran, said) == ([*range(6)], ["averaging", "already done: averaging"])
    found = store.get(key(), Means)
    assert found is not None
    assert torch.equal(found.values["llm.mlp.act"], first.values["llm.mlp.act"])
    assert store.get(Key("means/other.safetensors", FACTS), Means) is None
    with pytest.raises(StoreConflict, match=r"m\.safetensors holds another value: batch size is 32 there and 16 here"):
        store.get(key(**{"batch size": 16}), Means)
    assert Store(tmp_path, replace=True).get(key(**{"batch size": 16}), Means) is None


def test_facts_are_the_same_in_whatever_order_and_kind_of_list(tmp_path: Path) -> None:
    facts = {"a": (1, 2), "b": {"c": [3], "d": None}}
    Store(tmp_path).get_or_make(Key("x.safetensors", facts), lambda _: means(1), Means)
    facts = {"b": {"d": None, "c": (3,)}, "a": [1, 2]}
    Store(tmp_path).get_or_make(Key("x.safetensors", facts), never, Means)


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store, kept = Store(None), list[Keeper]()
    for _ in range(2):
        store.get_or_make(key(), lambda keeper: kept.append(keeper) or means(1), Means)
    assert [type(one) for one in kept] == [Memory, Memory]
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidValue, match=r"means/m\.safetensors: this store keeps nothing; give it a folder"):
        store.path(key())


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x"])
def test_a_value_does_not_leave_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidValue, match="leaves the run's folder; give a path inside it"):
        Store(tmp_path / "run").get_or_make(Key(path, {}), lambda _: means(1), Means)
    assert list(tmp_path.iterdir()) == []


# --- another value ---

OTHERS = {
    "another number": ({"batch size": 16}, "batch size is 32 there and 16 here"),
    "another input": ({"questions": {"medical": "2" * 64}}, f'questions medical is "{"1" * 56}... there'),
    "another model": ({"fingerprint": "e" * 64}, f'fingerprint is "{"f" * 56}... there and "{"e" * 56}... here'),
    "one fact more": ({"seed": 0}, "seed is absent there and 0 here"),
    "a fact of another type": ({"batch size": "32"}, 'batch size is 32 there and "32" here'),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_another_value_is_refused_and_what_is_there_stays(tmp_path: Path, other: str) -> None:
    changes, phrase = OTHERS[other]
    store = Store(tmp_path)
    store.get_or_make(key(), lambda _: means(1), Means)
    before = files_of(tmp_path)
    with pytest.raises(StoreConflict) as caught:
        store.get_or_make(key(**changes), never, Means)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'means' / 'm.safetensors'} holds another value: {phrase}")
    assert text.count(" there and ") == 1
    assert text.endswith("Give another folder with --out, or --replace to make it again.")
    assert files_of(tmp_path) == before
    made = Store(tmp_path, replace=True).get_or_make(key(**changes), lambda _: means(2), Means)
    assert made.values["llm.mlp.act"].item() == 2
    assert files_of(tmp_path) != before
    Store(tmp_path).get_or_make(key(**changes), never, Means)


def test_replace_keeps_what_is_this_very_value(tmp_path: Path) -> None:
    Store(tmp_path).get_or_make(key(), lambda _: means(1), Means)
    Store(tmp_path, replace=True).get_or_make(key(), never, Means)


def test_a_value_to_be_replaced_stays_until_the_other_is_there(tmp_path: Path) -> None:
    Store(tmp_path).get_or_make(key(), lambda _: means(1), Means)
    before = files_of(tmp_path)
    with pytest.raises(Stopped):
        Store(tmp_path, replace=True).get_or_make(key(seed=1), Summing(stop=0), Means)
    assert files_of(tmp_path) == before


def test_a_file_that_does_not_say_what_it_was_made_from_is_refused(tmp_path: Path) -> None:
    means(1).save(tmp_path / "means" / "m.safetensors")
    with pytest.raises(StoreConflict, match=r"holds another value: .*batch size is absent there and 32 here"):
        Store(tmp_path).get_or_make(key(), never, Means)
    with pytest.raises(StoreConflict, match="holds another value: it does not say what it was made from"):
        Store(tmp_path).get_or_make(Key("means/m.safetensors", {}), never, Means)
    with pytest.raises(StoreConflict):
        Store(tmp_path).get(key(), Means)


def test_differences_are_named_by_their_place_however_deep() -> None:
    held = {"a": {"b": {"c": 1, "same": [1]}, "gone": None}, "list": [1, 2], "x": {"y": 1}, "left": True}
    wanted = {"list": [2, 1], "a": {"b": {"c": 2, "same": (1,)}, "new": 3}, "x": "y"}
    assert differences(held, wanted) == [
        "list is [1,2] there and [2,1] here",
        "a b c is 1 there and 2 here",
        "a new is absent there and 3 here",
        "a gone is null there and absent here",
        'x is {"y":1} there and "y" here',
        "left is true there and absent here",
    ]
    assert differences(held, held) == []
    assert differences({"n": 1.0}, {"n": 1}) == ["n is 1.0 there and 1 here"]


def test_a_refusal_names_six_differences_and_counts_the_others() -> None:
    held = {f"fact {number}": number for number in range(9)}
    text = refusal(Path("x"), differences(held, {}))
    assert text.count(" there and ") == SHOWN == 6
    assert "fact 5 is 5 there and absent here; and 3 more. Give another folder" in text
    assert "more" not in refusal(Path("x"), differences(dict(list(held.items())[:6]), {}))
    assert "\n" not in text


def test_long_values_are_shortened() -> None:
    (phrase,) = differences({"ids": "x" * 1000}, {"ids": ["y" * 58]})
    assert phrase == f'ids is "{"x" * 56}... there and ["{"y" * 55}... here'
    (phrase,) = differences({"n": "x" * 58}, {"n": 1})
    assert phrase == f'n is "{"x" * 58}" there and 1 here'


# --- damage ---


@pytest.mark.parametrize("replace", [False, True])
def test_a_damaged_value_is_an_error_and_not_made_again(tmp_path: Path, replace: bool) -> None:
    store = Store(tmp_path, replace=replace)
    store.get_or_make(key(), lambda _: means(1), Means)
    file = store.path(key())
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    for ask in (lambda: store.get_or_make(key(), never, Means), lambda: store.get(key(), Means)):
        with pytest.raises(ArtifactError, match=r"m\.safetensors: is damaged .*run the command that wrote it again"):
            ask()
    assert file.read_bytes() == content
    file.unlink()
    store.get_or_make(key(), lambda _: means(1), Means)


def test_a_value_of_another_kind_is_an_error(tmp_path: Path) -> None:
    means(1).save(tmp_path / "means" / "m.safetensors", FACTS)
    with pytest.raises(ArtifactError, match="not an artifact"):
        Store(tmp_path).get_or_make(key(), never, OfficialScores)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageFailed, match=r"m\.safetensors: cannot be written \(Not a directory\)"):
        Store(tmp_path / "file").get_or_make(key(), never, Means)
    store, replace = Store(tmp_path), os.replace

    def full(source: Any, target: Path) -> None:
        if target.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageFailed, match=r"m\.safetensors: cannot be written \(No space left on device\)"):
        store.get_or_make(key(), lambda _: means(1), Means)
    assert list(files_of(tmp_path)) == ["file"]
    monkeypatch.undo()
    store.get_or_make(key(), lambda _: means(1), Means)


# --- pieces ---


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of a value that nothing stopped."""
    store = Store(tmp_path / "whole")
    store.get_or_make(key(), Summing(), Means)
    return store.path(key()).read_bytes()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder with the pieces of four steps: of the first group, and of one step of the second."""
    with pytest.raises(Stopped):
        Store(tmp_path / "run").get_or_make(key(), Summing(stop=4), Means)
    assert list(files_of(tmp_path / "run")) == [
        f"means/m.pieces/00000{one}.safetensors" for one in ("0-000003", "3-000004")
    ]
    return tmp_path / "run"


def test_what_was_done_is_not_done_again(begun: Path, whole: bytes) -> None:
    made = Summing()
    Store(begun).get_or_make(key(), made, Means)
    assert made.ran == [4, 5]
    assert files_of(begun) == {"means/m.safetensors": whole}


@pytest.mark.parametrize("damage", [lambda old: old[:-1], lambda old: b"", lambda old: old[:70] + b"?" + old[71:]])
def test_a_damaged_piece_is_moved_aside_said_and_made_again(begun: Path, whole: bytes, damage: Any) -> None:
    file = begun / "means" / "m.pieces" / "000000-000003.safetensors"
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    said: list[str] = []
    with pytest.raises(Stopped):
        Store(begun, say=said.append).get_or_make(key(), Summing(stop=1), Means)
    (line,) = said
    assert line.startswith(f"{file}: ")
    assert line.endswith("It was moved aside, and is made again.")
    assert file.with_suffix(".damaged").read_bytes() == damaged
    made = Summing()
    Store(begun).get_or_make(key(), made, Means)
    assert made.ran == [1, 2, 4, 5]
    assert files_of(begun) == {"means/m.safetensors": whole}


def test_pieces_of_another_value_are_refused_or_removed(begun: Path) -> None:
    before = files_of(begun)
    with pytest.raises(StoreConflict, match=r"m\.pieces holds another value: seed is absent there and 1 here\. Give"):
        Store(begun).get_or_make(key(seed=1), Summing(), Means)
    assert files_of(begun) == before
    made = Summing()
    Store(begun, replace=True).get_or_make(key(seed=1), made, Means)
    assert made.ran == [*range(6)]
    assert list(files_of(begun)) == ["means/m.safetensors"]


def test_pieces_left_beside_a_finished_value_are_removed(begun: Path, whole: bytes) -> None:
    """As a kill leaves them between the value and its pieces, with what it was writing."""
    (begun / "means" / "m.safetensors").write_bytes(whole)
    (begun / "means" / "m.pieces" / "jobs").mkdir()
    for name in ("m.pieces/jobs/run.json", "m.pieces/.000004-000005.safetensors.01.partial", "m.pieces/x.damaged"):
        (begun / "means" / name).write_text("x")
    (begun / "means" / ".m.safetensors.0123456789abcdef.partial").write_text("x")
    Store(begun).get_or_make(key(), never, Means)
    assert files_of(begun) == {"means/m.safetensors": whole}
    assert not (begun / "means" / "m.pieces").exists()


def test_a_piece_that_another_makes_needless_goes(tmp_path: Path) -> None:
    pieces = Store(tmp_path).pieces(key())
    for first, last in ((0, 1), (2, 3), (4, 5), (1, 4), (0, 4)):
        pieces.keep(Held(first, last, Piece(0, {"x": torch.ones(1)})))
    assert [(one.first, one.last) for one in pieces.held(5 * [Step(0, ())])] == [(0, 4), (4, 5)]


def test_a_piece_that_another_process_takes_away_meanwhile_is_no_error(tmp_path: Path, monkeypatch) -> None:
    pieces = Store(tmp_path).pieces(key())
    for place in range(2):
        pieces.keep(Held(place, place + 1, Piece(0, {"x": torch.ones(1)})))
    first, second = sorted(pieces.folder.iterdir())
    pieces.value.write_bytes(b"what the other made of them")
    glob = Path.glob

    def then_gone(folder: Path, pattern: str) -> Any:
        found = list(glob(folder, pattern))
        first.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "glob", then_gone)
    assert [one.first for one in pieces.held(2 * [Step(0, ())])] == [1]
    assert list(pieces.folder.iterdir()) == [second]


# --- one writer ---


def test_a_value_that_is_being_made_is_refused_by_the_holders_number(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def making(_: Keeper) -> Means:
        with pytest.raises(StoreBusy) as caught:
            Store(tmp_path).get_or_make(key(), never, Means)
        text = str(caught.value)
        assert text.startswith(f"{store.path(key())} is being written by process {os.getpid()} (")
        assert text.endswith("); wait for it, or give another --out.")
        # Another value is nobody else's.
        Store(tmp_path).get_or_make(Key("means/other.safetensors", {}), lambda _: means(2), Means)
        return means(1)

    store.get_or_make(key(), making, Means)
    assert sorted(files_of(tmp_path)) == ["means/m.safetensors", "means/other.safetensors"]


def test_the_hold_ends_with_an_error_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Stopped):
        store.get_or_make(key(), Summing(stop=0), Means)
    assert not list((tmp_path / ".locks").glob("*.holder"))
    store.get_or_make(key(), Summing(), Means)


def test_parts_are_held_apart_and_leave_each_other_what_they_write(tmp_path: Path) -> None:
    store = Store(tmp_path)
    partial = tmp_path / "means" / ".m.safetensors.0123456789abcdef.partial"
    with store.writing(key(), Shard(1, 2)):
        with pytest.raises(StoreBusy), store.writing(key(), Shard(1, 2)):
            pass
        with store.writing(key()):
            partial.parent.mkdir()
            partial.write_text("being written")
            with store.writing(key(), Shard(2, 2)):
                assert partial.exists()
    with store.writing(key()):
        assert not partial.exists()


# --- names ---

NAMES = ("road/signs", "road--signs", "road+signs", "Roads", "roads", "a+b", "a/b", "con", "..", "x" * 300, "é", "道路")


def test_domains_of_like_names_lie_side_by_side(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number, name in enumerate(NAMES):
        store.get_or_make(key_of("counts", "m", name, facts={"n": number}), lambda _, n=number: means(n), Means)
    for number, name in enumerate(NAMES):
        found = store.get_or_make(key_of("counts", "m", name, facts={"n": number}), never, Means)
        assert found.values["llm.mlp.act"].item() == number
    files = list(files_of(tmp_path))
    assert len({name.lower() for name in files}) == len(files) == len(NAMES)
    assert all(Path(name).parent == Path("counts/m") for name in files)
