"""Files whose checksum fits and whose content cannot be: refused in a line that names the file and the field."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged_artifacts import flipped, nonsense
from test_artifact_damage import FLAT, MADE, SITE, counts, piece, refusal, selection

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.format import read_artifact, write_artifact, write_lines
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.runs.pieces import KeptPiece

TIMES = 40


@pytest.mark.parametrize("name", MADE)
def test_content_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    made, path = MADE[name], tmp_path / "a"
    draw = random.Random(name)
    made.save(path)
    type(made).load(path)
    for _ in range(TIMES):
        told = nonsense(made, path, draw)
        try:
            text = refusal(type(made).load, path)
        except BaseException as error:
            raise AssertionError(f"{told}: {error}") from error
        assert text.endswith("delete it and run the command that wrote it again."), (told, text)


@pytest.mark.parametrize("name", MADE)
def test_bytes_that_changed_are_refused_or_are_the_same(name: str, tmp_path: Path) -> None:
    made, path = MADE[name], tmp_path / "a"
    made.save(path)
    content, draw = path.read_bytes(), random.Random(name)
    for _ in range(TIMES):
        damaged = flipped(content, draw)
        path.write_bytes(damaged)
        if damaged != content:
            refusal(type(made).load, path)


def edited(made: Any, path: Path, **changes: Any) -> Any:
    """Loads the artifact again with other metadata, or tensors whose names are given with `/`."""
    made.save(path)
    tensors, metadata = read_artifact(path, made.kind)
    for name, value in changes.items():
        if "/" in name:
            tensors[name] = value
        else:
            metadata[name] = value
    write_artifact(path, made.kind, tensors, metadata)
    return refusal(type(made).load, path)


def test_what_would_be_broadcast_or_counted_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    active = counts().active[SITE].int()
    assert "counts are torch.float32" in edited(counts(), path, **{f"active/{SITE}": active.float()})
    assert "above the number of tokens" in edited(counts(), path, **{f"active/{SITE}": active + 8})
    assert "expected [bucket 16" in edited(counts(), path, **{f"active/{SITE}": active[:1]})
    assert "is torch.int32 [3], not absent" in edited(counts(), path, **{"other/x": torch.ones(3).int()})
    assert "samples is -1" in edited(counts(), path, samples=-1)
    masks = selection().masks[SITE]
    assert f"probability/{SITE} is torch.float64 [1, 2, 2]" in edited(
        selection(), path, **{f"masks/{SITE}": masks[:, :1]}
    )
    assert "domains.1 is 3" in edited(selection(), path, domains=["common", 3])
    assert "[layer, neuron, 3]" in edited(selection(), path, domains=["common", "medical", "third"])
    assert "domains repeat a name" in edited(selection(), path, domains=["common", "common"])
    high = {f"probability/{FLAT}": torch.full((1, 1, 2), 1.5, dtype=torch.float64)}
    assert f"probability/{FLAT} has values above 1" in edited(selection(), path, **high)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first": -1}, "first to last is -00001-000004"),
        ({"last": 999}, "last is 999, beyond the steps"),
        ({"last": 2}, "first to last is 000002-000002"),
        ({"group": 16}, "group is 16, of 16"),
        ({"group": -1}, "group is -1, of 16"),
        ({"group": True}, "group is True"),
        ({"seen": [1]}, "seen.0 is 1"),
        ({"facts": {}}, "has no 'steps'"),
        ({f"active/{SITE}": torch.full((1, 2, 2), 9)}, "above the number of tokens"),
        ({f"tokens/{SITE}": torch.tensor([3])}, f"tokens/{SITE} is not of the kinds"),
    ],
)
def test_batches_done_and_counts_that_cannot_be(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in edited(piece(), tmp_path / "a", **changes)


def test_a_document_of_any_form_is_refused(tmp_path: Path) -> None:
    """Deep, not a number, a list: what a reader of JSON takes or falls over."""
    path = tmp_path / "a"
    for text in ("[" * 60_000, "NaN", "[1]", '"x"'):
        write_lines(path, "answers", [], {"settings": {}})
        sealed_again(path, b'"settings":{}', f'"settings":{text}'.encode())
        refusal(type(MADE["answers"]).load, path)


def sealed_again(path: Path, old: bytes, new: bytes) -> None:
    """Edits a file and gives it the checksum of its new content."""
    import hashlib
    import re

    content = path.read_bytes().replace(old, new)
    bare = re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b"0" * 64 + b'"', content, count=1)
    path.write_bytes(bare.replace(b"0" * 64, hashlib.sha256(bare).hexdigest().encode(), 1))


def test_the_edit_is_sealed_as_the_writer_seals(tmp_path: Path) -> None:
    path = tmp_path / "a"
    MADE["answers"].save(path)
    content = path.read_bytes()
    sealed_again(path, b"", b"")
    assert path.read_bytes() == content


def test_every_class_says_what_it_must_hold() -> None:
    for kind in Artifact.__subclasses__():
        assert kind.check is not Artifact.check
    assert {Counts, Selection, KeptPiece} <= {*Artifact.__subclasses__()}
