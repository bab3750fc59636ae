"""Artifacts: what stages hand to each other on disk. Safetensors with a JSON document in the header, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interventions.errors import FileMissing, InvalidValue

VERSION = 1
"""The newest artifact format this package reads, and the one it writes."""

HEADER = "mmneuron_lens"
"""The one key of the safetensors metadata; its value is the JSON document."""

PACKAGES = ("mmneuron_lens", "torch", "transformers", "nnsight")
RESERVED = ("kind", "version")


class ArtifactError(InvalidValue):
    """A file is not the artifact that was asked for; the message names the file, the value and the next step."""


def provenance(**facts: Any) -> dict[str, Any]:
    """Facts of a run with the versions of the packages that made it; a package that is not installed is left out.

    Two runs of the same thing must write the same bytes, so give no wall-clock time and no path of this machine
    (a `created` time is possible, and costs that).
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, **facts}


def write_artifact(path: str | Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes `tensors` and the JSON document {"kind", "version", **metadata, "provenance"} to `path`, atomically.

    The same arguments give the same bytes. A reader sees the old file or the new one, never a part. Without a
    "provenance" in `metadata` the versions alone are written.

    Raises `ArtifactError` when `metadata` uses a reserved key or holds what JSON cannot.
    """
    path = Path(path)
    for key in RESERVED:
        if key in metadata:
            raise ArtifactError(f"{path}: metadata key {key!r} is reserved for the format; choose another name.")
    document = {"kind": kind, "version": VERSION, "provenance": provenance(), **metadata}
    try:
        text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: metadata of {kind!r} is not JSON ({error}); put arrays in tensors.") from error
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(own, metadata={HEADER: text}))


def read_artifact(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata (without "kind" and "version") of an artifact of this `kind`.

    Raises `FileNotFoundError` when there is no such file, and `ArtifactError` when it is cut off, is not an artifact,
    is of another kind, or was written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileMissing(f"{path}: no such file; run the stage that writes {kind!r} artifacts, or check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            document = _document(path, text)
            check_document(path, document, kind)
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ArtifactError(
            f"{path}: not a complete safetensors file ({error}); copy it again or rerun the stage that wrote it."
        ) from error
    return tensors, {key: value for key, value in document.items() if key not in RESERVED}


def content_hash(path: str | Path) -> str:
    """The sha256 of the file's bytes, in hexadecimal: the name under which other artifacts cite this one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise ArtifactError(f"{path}: safetensors without the header {HEADER!r}, so not an artifact; check the path.")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"{path}: header {HEADER!r} is not JSON ({error}); rerun the stage that wrote it."
        ) from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: header {HEADER!r} is {document!r}, not an object; rerun the stage that wrote it.")
    return document


def check_document(path: Path, document: dict[str, Any], kind: str) -> None:
    """Raises `ArtifactError` when the JSON document of an artifact is of another kind or a newer version."""
    if document.get("kind") != kind:
        raise ArtifactError(f"{path}: kind is {document.get('kind')!r}, not {kind!r}; give a file of kind {kind!r}.")
    found = document.get("version")
    if not isinstance(found, int) or found < 1:
        raise ArtifactError(f"{path}: version is {found!r}, not a positive number; rerun the stage that wrote it.")
    if found > VERSION:
        raise ArtifactError(
            f"{path}: version is {found}, newer than {VERSION}; upgrade with `pip install -U mmneuron-lens`."
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, and the folder it lies in, so that a reader, or a kill, finds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
