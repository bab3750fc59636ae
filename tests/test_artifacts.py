"""Artifacts: exact round trips, the same bytes for the same content, and refusals that say what to do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmneuron_lens.artifacts import format as artifacts
from mmneuron_lens.artifacts.format import (
    ArtifactError,
    content_hash,
    provenance,
    read_artifact,
    read_lines,
    write_artifact,
    write_lines,
)

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
    text = header["__metadata__"]["mmneuron_lens"]
    document = json.loads(text)
    assert list(document) == ["sha256", "kind", "model", "provenance", "version"]
    assert (document["kind"], document["version"]) == ("thing", 2)


def test_the_checksum_is_the_sha256_of_the_file_with_zeros_in_its_place(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", "thing", TENSORS, {"model": "m"})
    write_lines(tmp_path / "b", "thing", [{"x": 1}], {"model": "m"})
    for file in ("a", "b"):
        content = (tmp_path / file).read_bytes()
        # 64 hexadecimal digits stand nowhere else in these files.
        (said,) = re.findall(rb"[0-9a-f]{64}", content)
        assert hashlib.sha256(content.replace(said, b"0" * 64)).hexdigest().encode() == said


def test_lines_come_back_whole_and_tell_their_number(tmp_path: Path) -> None:
    # Unicode has more ends of lines than JSON lines do.
    rows = [{"text": "one\u2028two\x85\r\n", "n": [1, None]}, {"text": "é", "n": []}]
    write_lines(tmp_path / "a", "thing", rows, {"model": "m", "provenance": {}})
    assert read_lines(tmp_path / "a", "thing") == (rows, {"model": "m", "provenance": {}})
    first, *others = (tmp_path / "a").read_bytes().decode().split("\n")[:-1]
    assert json.loads(first)["rows"] == len(others) == 2
    write_lines(tmp_path / "b", "thing", [], {"model": "m"})
    assert read_lines(tmp_path / "b", "thing")[0] == []
    assert json.loads((tmp_path / "b").read_bytes())["model"] == "m"


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


def message(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path, "thing")
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_wrong_kind(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", "other", TENSORS, {})
    assert message(tmp_path / "a").endswith(
        "kind is 'other', not 'thing'; move this one to where it belongs, or give a file of kind 'thing'."
    )


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for found in (artifacts.VERSION + 1, 1):
            patch.setattr(artifacts, "VERSION", found)
            write_artifact(tmp_path / f"{found}", "thing", TENSORS, {})
    newer, older = message(tmp_path / "3"), message(tmp_path / "1")
    assert "version is 3, and this package reads 2; upgrade with `pip install -U mmneuron-lens`." in newer
    assert "version is 1, and this package reads 2; run the command that wrote it again." in older


@pytest.mark.parametrize("header", [None, "{", "[]", '{"kind":"thing","version":2}', '{"kind":"thing","version":1}'])
def test_a_foreign_safetensors_file_and_one_of_the_first_version(tmp_path: Path, header: str | None) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a", metadata=None if header is None else {"mmneuron_lens": header})
    text = message(tmp_path / "a")
    assert "has no checksum where version 2 has it: damaged, no artifact, or of an earlier version" in text
    assert text.endswith("delete it and run the command that wrote it again.")


def test_a_sealed_file_that_is_no_artifact(tmp_path: Path) -> None:
    """What no bit has been flipped in, and yet is another thing."""
    content = f'{{"sha256":"{"0" * 64}"'.encode()
    for name, rest in (("no JSON", b"}{"), ("no text", b',"kind":"\xff"}'), ("no tensors", b',"kind":"thing"}')):
        (tmp_path / name).write_bytes(artifacts.sealed(content + rest))
        assert "not an artifact (" in message(tmp_path / name)
        if name != "no tensors":
            with pytest.raises(ArtifactError, match=r"not an artifact \("):
                read_lines(tmp_path / name, "thing")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "cannot be read (Is a directory)" in message(tmp_path / "folder")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; run the stage that writes 'thing' artifacts"):
        read_artifact(tmp_path / "none", "thing")


@pytest.mark.parametrize("metadata", [{"x": torch.zeros(1)}, {"x": float("nan")}, {"x": {1, 2}}])
def test_metadata_that_json_cannot_hold(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"metadata of 'thing' is not JSON .*put arrays in tensors"):
        write_artifact(tmp_path / "a", "thing", {}, metadata)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["sha256", "kind", "version"])
def test_reserved_keys(tmp_path: Path, key: str) -> None:
    with pytest.raises(ArtifactError, match=f"metadata key '{key}' is reserved"):
        write_artifact(tmp_path / "a", "thing", {}, {key: 1})
