"""The format of artifacts: safetensors with a JSON document in the header, or JSON lines; sealed with a checksum."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from interventions.errors import FileMissing, InvalidValue, MMNeuronError
from interventions.files import write_atomically

VERSION = 2
"""The one artifact format that this package reads and writes."""

HEADER = "mmneuron_lens"
"""The one key of the safetensors metadata; its value is the JSON document."""

PACKAGES = ("mmneuron_lens", "torch", "transformers", "nnsight")
RESERVED = ("sha256", "kind", "version")

AGAIN = "delete it and run the command that wrote it again."
"""The next step where a file cannot be used."""

_UNSEALED = "0" * 64
# The first thing in a document, which comes first in a safetensors header and in JSON lines.
_SEAL = re.compile(rb'(?:.{8}\{"__metadata__":\{"mmneuron_lens":")?\{\\?"sha256\\?":\\?"([0-9a-f]{64})\\?"', re.DOTALL)


class ArtifactError(InvalidValue):
    """A file is not the artifact that was asked for; the message names the file, the value and the next step."""


def provenance(**facts: Any) -> dict[str, Any]:
    """Facts of a run with the versions of the packages that made it; a package that is not installed is left out.

    Two runs of the same thing must write the same bytes, so give no wall-clock time and no path of this machine.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, **facts}


def document_of(path: str | Path, kind: str, metadata: dict[str, Any]) -> str:
    """The JSON document of an artifact, not sealed yet: its checksum first, then kind, version and `metadata`.

    Raises `ArtifactError` when `metadata` uses a reserved key or holds what JSON cannot.
    """
    for key in RESERVED:
        if key in metadata:
            raise ArtifactError(f"{path}: metadata key {key!r} is reserved for the format; choose another name.")
    try:
        text = dumps({"kind": kind, "version": VERSION, **metadata})
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: metadata of {kind!r} is not JSON ({error}); put arrays in tensors.") from error
    return f'{{"sha256":"{_UNSEALED}",{text[1:]}'


def dumps(value: Any) -> str:
    """JSON whose bytes depend on the value alone. Raises `TypeError` or `ValueError` for what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def sealed(content: bytes) -> bytes:
    """The content with its checksum in place of the zeros that `document_of` left for it."""
    found = _SEAL.match(content)
    assert found is not None, "content without a place for its checksum"
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: found.start(1)] + digest + content[found.end(1) :]


def read_sealed(path: str | Path, kind: str) -> bytes:
    """The bytes of an artifact's file, once they are known to be those that were written.

    Raises `FileMissing` when there is no such file, `ArtifactError` naming it and how to make it again when any byte
    differs from what was written.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        step = f"run the stage that writes {kind!r} artifacts, or check the path"
        raise FileMissing(f"{path}: no such file; {step}.") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); copy it again, or {AGAIN}") from error
    found = _SEAL.match(content)
    if found is None:
        raise ArtifactError(
            f"{path}: has no checksum where version {VERSION} has it: damaged, no artifact, or of an earlier version, "
            f"which is not read; {AGAIN}"
        )
    whole = hashlib.sha256(content[: found.start(1)])
    whole.update(_UNSEALED.encode())
    whole.update(memoryview(content)[found.end(1) :])
    if whole.hexdigest().encode() != found[1]:
        raise ArtifactError(f"{path}: is damaged (its checksum does not match its content); copy it again, or {AGAIN}")
    return content


def write_artifact(path: str | Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes `tensors` and the JSON document {"sha256", "kind", "version", **metadata} to `path`, atomically.

    - path: a safetensors file.
    - kind: what it holds, "counts" for one.
    - tensors: by name.
    - metadata: JSON; without a "provenance" in it the versions alone are written.

    The same arguments give the same bytes. Raises `ArtifactError` for metadata that JSON cannot hold, `StorageFailed`
    when the file cannot be written.
    """
    text = document_of(path, kind, {"provenance": provenance(), **metadata})
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, sealed(save(own, metadata={HEADER: text})))


def read_artifact(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata (without checksum, kind and version) of an artifact of this `kind`.

    Raises `FileMissing` when there is no such file, and `ArtifactError` when it is damaged, not an artifact, or of
    another kind or version.
    """
    path = Path(path)
    content = read_sealed(path, kind)
    document = read_document(path, content)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not an artifact ({error}); check the path.") from error
    check_document(path, document, kind)
    names = sorted(tensors)
    return {name: tensors[name] for name in names}, {
        key: value for key, value in document.items() if key not in RESERVED
    }


def read_document(path: str | Path, content: bytes) -> Any:
    """The JSON document in the header of a safetensors file of these bytes, checksum, kind and version included.

    Raises `ArtifactError` where there is none.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        return _loads(_loads(content[8 : 8 + size]).get("__metadata__", {}).get(HEADER))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not an artifact ({error}); check the path.") from error


def write_lines(
    path: str | Path, kind: str, rows: list[dict[str, Any]], metadata: dict[str, Any], private: bool = False
) -> None:
    """Writes an artifact as JSON lines: the document on the first, then a row a line. Errors as `write_artifact`.

    private: no other user may read it.
    """
    text = document_of(path, kind, {"provenance": provenance(), **metadata, "rows": len(rows)})
    write_atomically(path, sealed("".join(f"{line}\n" for line in (text, *map(dumps, rows))).encode()), private)


def read_lines(path: str | Path, kind: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the metadata of what `write_lines` wrote; raises as `read_artifact`."""
    path = Path(path)
    content = read_sealed(path, kind)
    try:
        # Not splitlines: text may hold other line separators of Unicode.
        head, *lines = content.decode().rstrip("\n").split("\n")
        document, rows = _loads(head), [_loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not an artifact ({error}); check the path.") from error
    check_document(path, document, kind)
    stated = document.pop("rows", None)
    if stated != len(rows) or not all(isinstance(row, dict) for row in rows):
        raise ArtifactError(f"{path}: rows is {stated!r:.80}, and {len(rows)} lines of objects are expected; {AGAIN}")
    return rows, {key: value for key, value in document.items() if key not in RESERVED}


def content_hash(path: str | Path) -> str:
    """The sha256 of the file's bytes, in hexadecimal: the name under which other artifacts cite this one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def unpacking(path: str | Path, kind: str) -> Generator[None]:
    """Raises whatever making a value from a file's content raises as `ArtifactError`, naming the file and the field."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        lacks = isinstance(error, KeyError) and not isinstance(error, MMNeuronError)
        said = f"has no {error}" if lacks else " ".join(str(error).split())
        raise ArtifactError(f"{path}: is no whole {kind!r}: {said}; {AGAIN}") from error


def _loads(text: str | bytes) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def check_document(path: Path, document: Any, kind: str) -> None:
    """Raises `ArtifactError` when the JSON document of an artifact is of another kind or version."""
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: its document is {document!r:.80}, not an object; check the path.")
    if document.get("kind") != kind:
        raise ArtifactError(
            f"{path}: kind is {document.get('kind')!r:.80}, not {kind!r}; move this one to where it belongs, or give a "
            f"file of kind {kind!r}."
        )
    found = document.get("version")
    if found != VERSION:
        upgrade = isinstance(found, int) and found > VERSION
        step = "upgrade with `pip install -U mmneuron-lens`" if upgrade else "run the command that wrote it again"
        raise ArtifactError(f"{path}: version is {found!r}, and this package reads {VERSION}; {step}.")
