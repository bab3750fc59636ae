"""The manifest of a shared run: every file with its size and sha256, and nothing that may not be one.

Anyone can write a manifest, so it is held to what `mmneuron push` writes before a file of it is fetched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, cast

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.file_names import refuse_unportable
from mmneuron_lens.runs.shared_kinds import CARD, MANIFEST, kind_of_file

KIND, VERSION = "shared run", 1

LARGEST = 2**24
"""Bytes of a manifest."""

MOST_FILES = 200_000

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(InvalidValue):
    """A manifest that cannot be one; the message names the entry."""


@dataclass(frozen=True)
class SharedFile:
    """A file of a shared run: its path below the run's folder with `/`, its bytes, and their sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class RunManifest:
    """Every file of a shared run, and what was left out.

    - left_out: how many files of a kind were not sent, by why.
    """

    files: tuple[SharedFile, ...]
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])

    def packed(self) -> bytes:
        """The document; the same files give the same bytes."""
        files = [{"path": one.path, "size": one.size, "sha256": one.sha256} for one in self.files]
        document = {"kind": KIND, "version": VERSION, "files": files, "left_out": dict(self.left_out)}
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()

    @property
    def digest(self) -> str:
        """The sha256 of the document: what the run is known by."""
        return hashlib.sha256(self.packed()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)

    @property
    def paths(self) -> set[str]:
        return {one.path for one in self.files}

    @classmethod
    def unpacked(cls, content: bytes, where: str) -> RunManifest:
        """The manifest from its document.

        - where: what messages call it.

        Raises `ManifestError` for another kind or version, types that do not fit, a path that leaves the folder or
        that no other system could hold, and a file that is none of a run.
        """
        try:
            document: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{where}: is not JSON ({error}); push the run again.") from None
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise ManifestError(f"{where}: is no manifest of a run; check the URL.")
        version = document.get("version")
        if version != VERSION or isinstance(version, bool):
            step = "upgrade with `pip install -U mmneuron-lens`" if _newer(version) else "push the run again"
            raise ManifestError(f"{where}: version is {version!r:.60}, and this package reads {VERSION}; {step}.")
        files: Any = document.get("files")
        if not isinstance(files, list) or len(files) > MOST_FILES:
            raise ManifestError(f"{where}: files is no list of at most {MOST_FILES:,} files.")
        made = tuple(_file(one, f"{where}, file {number}") for number, one in enumerate(files, 1))
        _refuse_clashes(where, [one.path for one in made])
        left: Any = document.get("left_out")
        if not isinstance(left, dict) or not all(_whole(count) for count in left.values()):
            raise ManifestError(f"{where}: left_out is {left!r:.60}, not numbers by reason.")
        return cls(made, left)


def _newer(version: object) -> bool:
    return isinstance(version, int) and not isinstance(version, bool) and version > VERSION


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**50


def _file(one: Any, where: str) -> SharedFile:
    if not isinstance(one, dict) or one.keys() != {"path", "size", "sha256"}:
        raise ManifestError(f"{where}: is {one!r:.80}, not an object of path, size and sha256.")
    entry = cast("dict[str, Any]", one)
    path, size, digest = entry["path"], entry["size"], entry["sha256"]
    if not isinstance(path, str):
        raise ManifestError(f"{where}: path is {path!r:.80}, no text.")
    try:
        refuse_unportable(path)
    except InvalidValue as error:
        raise ManifestError(f"{where}: {error}") from None
    if not _whole(size):
        raise ManifestError(f"{where}: size of {path} is {size!r:.60}, no number of bytes.")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ManifestError(f"{where}: sha256 of {path} is {digest!r:.80}, no digest.")
    if path != CARD and kind_of_file(path) is None:
        raise ManifestError(
            f"{where}: {path} is no file of a run that this package knows; upgrade with `pip install -U "
            "mmneuron-lens`, or do not trust this run."
        )
    return SharedFile(path, size, digest)


def _refuse_clashes(where: str, paths: Sequence[str]) -> None:
    """Raises `ManifestError` for two files that some system takes for one, and for a file that is a folder too."""
    known = {MANIFEST: MANIFEST}
    for path in paths:
        if path.casefold() in known:
            raise ManifestError(f"{where}: {path} and {known[path.casefold()]} are one file on some systems.")
        known[path.casefold()] = path
    for path in paths:
        for parent in PurePosixPath(path.casefold()).parents:
            if str(parent) in known:
                raise ManifestError(f"{where}: {path} lies in {known[str(parent)]}, which is a file.")
