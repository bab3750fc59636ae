"""Artifacts: exact round trips, the same bytes for the same content, and refusals that say what to do."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmneuron_lens.artifacts import format as artifacts
from mmneuron_lens.artifacts.format import ArtifactError, content_hash, provenance, read_artifact, write_artifact

TENSORS = {
    "mask": torch.tensor([[True, False], [False, True]]),
    "count": torch.tensor([0, 1, 2**40]),
    "probability": torch.tensor([0.1, float("nan")], dtype=torch.float64),
    "turned": torch.arange(6).view(2, 3).T,
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    metadata = {"model": "m", "nested": {"b": [1, 2.5, None], "a": "é"}, "provenance": provenance(seed=3)}
    write_artifact(tmp_path / "deep" / "one.safetensors", "thing", TENSORS, metadata)
    tensors, back = read_artifact(tmp_path / "deep" / "one.safetensors", "thing")
    assert back == metadata
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name].nan_to_num(), tensor.nan_to_num())


def test_same_content_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", "thing", TENSORS, {"x": 1, "y": (2, 3)})
    write_artifact(tmp_path / "b", "thing", dict(reversed(TENSORS.items())), {"y": [2, 3], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    write_artifact(tmp_path / "c", "thing", TENSORS, {"x": 2, "y": (2, 3)})
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "c")


def test_content_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert content_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_provenance_has_versions_and_facts() -> None:
    facts = provenance(seed=1)
    assert facts["seed"] == 1
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_header_holds_one_json_document(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", "thing", TENSORS, {"model": "m"})
    raw = (tmp_path / "a").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert list(header["__metadata__"]) == ["mmneuron_lens"]
    document = json.loads(header["__metadata__"]["mmneuron_lens"])
    assert document.keys() == {"kind", "version", "model", "provenance"}
    assert (document["kind"], document["version"]) == ("thing", 1)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_artifact(tmp_path / "a", "thing", TENSORS, {"x": 1})
    before = (tmp_path / "a").read_bytes()

    def fails(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_artifact(tmp_path / "a", "thing", TENSORS, {"x": 2})
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def tampered(path: Path, **changes: Any) -> Path:
    document = {"kind": "thing", "version": 1, "provenance": {}, **changes}
    save_file({"x": torch.zeros(2)}, path, metadata={"mmneuron_lens": json.dumps(document)})
    return path


def message(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path, "thing")
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_wrong_kind(tmp_path: Path) -> None:
    assert "kind is 'other', not 'thing'; give a file of kind 'thing'." in message(
        tampered(tmp_path / "a", kind="other")
    )


@pytest.mark.parametrize("found", [artifacts.VERSION + 1, 99])
def test_newer_version(tmp_path: Path, found: int) -> None:
    text = message(tampered(tmp_path / "a", version=found))
    assert f"version is {found}, newer than {artifacts.VERSION}; upgrade with `pip install -U mmneuron-lens`." in text


@pytest.mark.parametrize("found", [None, "1", 0])
def test_nonsense_version(tmp_path: Path, found: Any) -> None:
    assert f"version is {found!r}, not a positive number" in message(tampered(tmp_path / "a", version=found))


@pytest.mark.parametrize("kept", [0, 4, 60, 0.5, -1])
def test_cut_off_file(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a"
    write_artifact(path, "thing", TENSORS, {"x": 1})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept) if isinstance(kept, float) else kept])
    text = message(path)
    assert "not a complete safetensors file" in text
    assert text.endswith("copy it again or rerun the stage that wrote it.")


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a")
    assert "without the header 'mmneuron_lens', so not an artifact" in message(tmp_path / "a")
    save_file({"x": torch.zeros(2)}, tmp_path / "b", metadata={"mmneuron_lens": "{"})
    assert "is not JSON" in message(tmp_path / "b")
    save_file({"x": torch.zeros(2)}, tmp_path / "c", metadata={"mmneuron_lens": "[]"})
    assert "is [], not an object" in message(tmp_path / "c")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; run the stage that writes 'thing' artifacts"):
        read_artifact(tmp_path / "none", "thing")


@pytest.mark.parametrize("metadata", [{"x": torch.zeros(1)}, {"x": float("nan")}, {"x": {1, 2}}])
def test_metadata_that_json_cannot_hold(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"metadata of 'thing' is not JSON .*put arrays in tensors"):
        write_artifact(tmp_path / "a", "thing", {}, metadata)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["kind", "version"])
def test_reserved_keys(tmp_path: Path, key: str) -> None:
    with pytest.raises(ArtifactError, match=f"metadata key '{key}' is reserved"):
        write_artifact(tmp_path / "a", "thing", {}, {key: 1})
