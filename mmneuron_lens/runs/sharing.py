"""Sharing: a run's results sent to a folder elsewhere, and brought back from there, each file known by its sha256."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from interventions.errors import FileMissing, InvalidValue, MMNeuronError, StorageFailed
from interventions.files import atomic_file, storage_errors, write_atomically
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.runs.keys import StoreConflict
from mmneuron_lens.runs.manifest import LARGEST, RunManifest, SharedFile
from mmneuron_lens.runs.remote_folder import TOGETHER, Content, RemoteFolder, remote_folder
from mmneuron_lens.runs.run_card import card_of
from mmneuron_lens.runs.shared_files import shared_of
from mmneuron_lens.runs.shared_kinds import CARD, MANIFEST, UNFINISHED
from mmneuron_lens.runs.store import LOCKS

AGAIN = "it is not kept. Pull again, or have the run pushed again."

NOT_OURS = (".gitattributes",)
"""What a place has of its own."""

Say = Callable[[str], Any]


class SharingError(InvalidValue):
    """What was fetched is not what the manifest says; the message names the file."""


def push_run(
    run: str | Path,
    url: str,
    *,
    licence: str = "unknown",
    texts: bool = False,
    pictures: bool = False,
    replace: bool = False,
    say: Say = lambda text: None,
    progress: Progress = quietly,
) -> RunManifest:
    """Sends a run's artifacts, tables and pages to a URL, with a card; returns the manifest.

    - run: its folder. url: of a folder; `hf://datasets/OWNER/NAME` is made, for its owner alone, unless it is there.
    - licence: as the hub names it, `cc-by-4.0`.
    - texts, pictures: send files with the corpus's questions and answers, or pictures, too; see `shared_kinds`.
    - replace: another run that lies there goes.

    The manifest is written last: without it a run is not read. Raises `RunError` for a folder without results,
    `StoreConflict` for a place that holds something else, `InvalidValue` for a file that names a folder of this
    machine.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", licence):
        raise InvalidValue(f"licence {licence!r:.80} is no name of one; write it as the hub does: mit, cc-by-4.0.")
    place = remote_folder(url)
    shared = shared_of(Path(run), texts=texts, pictures=pictures)
    card = card_of(Path(run), shared, licence, url if url.startswith("hf://") else "")
    contents: dict[str, Content] = {**shared.contents, CARD: card.encode()}
    manifest = RunManifest(tuple(_described(name, contents[name]) for name in sorted(contents)), shared.left_out)
    old = _held(place)
    if old is not None and old.digest == manifest.digest:
        say(f"already there: {place.shown}")
        return manifest
    there = place.names() - {*NOT_OURS}
    _refuse_other(place, old, there, replace)
    place.prepare()
    if old is not None:
        place.remove([MANIFEST])
    place.put({UNFINISHED: json.dumps({"sha256": manifest.digest}).encode()})
    _sent(place, contents, progress)
    _refuse_changed(contents, manifest)
    place.remove(sorted((old.paths if old else set()) - manifest.paths))
    place.put({MANIFEST: manifest.packed()})
    place.remove([UNFINISHED])
    say(f"sent {len(manifest.files)} files, {manifest.size:,} bytes: {place.shown}")
    return manifest


def pull_run(url: str, out: str | Path, *, say: Say = lambda text: None, progress: Progress = quietly) -> RunManifest:
    """Brings a run that `push_run` sent to a folder, every file held to its size and sha256; returns its manifest.

    - out: a new folder, or one in which this was stopped before.

    Raises `FileMissing` where there is no run, or not a whole one; `ManifestError` and `SharingError` for what is not
    what it says it is; `StoreConflict` for a folder that holds something else.
    """
    place = remote_folder(url)
    return _fetch(place, _manifest(place), Path(out), say, progress)


def pull_into_cache(url: str, folder: Path, *, progress: Progress = quietly) -> Path:
    """The folder below this one that holds the run of a URL; fetched unless this very run is there."""
    place = remote_folder(url)
    manifest = _manifest(place)
    out = folder / manifest.digest[:32]
    _fetch(place, manifest, out, lambda text: None, progress)
    return out


def _sent(place: RemoteFolder, contents: Mapping[str, Content], progress: Progress) -> None:
    names = sorted(contents)
    batches = [names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER)]
    for some in progress(batches, f"sending to {place.shown}"):
        place.put({name: contents[name] for name in some})


def _refuse_changed(contents: Mapping[str, Content], manifest: RunManifest) -> None:
    """Raises `StorageFailed` for a file that is not the one any more that the manifest names."""
    for one in manifest.files:
        if _described(one.path, contents[one.path]) != one:
            raise StorageFailed(
                f"{contents[one.path]}: was written while it was sent; push again when the run is done."
            )


def _described(name: str, content: Content) -> SharedFile:
    if isinstance(content, bytes):
        return SharedFile(name, len(content), hashlib.sha256(content).hexdigest())
    with open(content, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return SharedFile(name, file.tell(), digest)


def _held(place: RemoteFolder) -> RunManifest | None:
    """The manifest of the run that lies at a place."""
    content = place.read(MANIFEST, LARGEST)
    return None if content is None else RunManifest.unpacked(content, f"{place.shown}/{MANIFEST}")


def _manifest(place: RemoteFolder) -> RunManifest:
    found = _held(place)
    if found is None and place.read(UNFINISHED, LARGEST) is not None:
        raise FileMissing(f"{place.shown}: the push to it was not finished; run `mmneuron push` again, then pull.")
    if found is None:
        raise FileMissing(
            f"{place.shown}: holds no run, since it has no {MANIFEST}; check the URL, and log in if it is private."
        )
    return found


def _refuse_other(place: RemoteFolder, old: RunManifest | None, there: set[str], replace: bool) -> None:
    """Raises `StoreConflict` for a place with another run, or files that are no unfinished one."""
    if replace or not there or (old is None and UNFINISHED in there):
        return
    what = "another run" if old is not None else f"{len(there)} files that are no run"
    raise StoreConflict(f"{place.shown} holds {what}; give another URL, or --replace to write this one in its place.")


def _fetch(place: RemoteFolder, manifest: RunManifest, out: Path, say: Say, progress: Progress) -> RunManifest:
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _refuse_links(out)
        (out / LOCKS).mkdir(exist_ok=True)
    with FileLock(out / LOCKS / "pull.lock"):
        there = _there(out, manifest)
        missing = [one for one in manifest.files if one.path not in there]
        for one in progress(missing, f"fetching from {place.shown}"):
            _fetch_file(place, one, out)
        write_atomically(out / MANIFEST, manifest.packed())
    say(f"fetched {len(missing)} of {len(manifest.files)} files: {out}")
    return manifest


def _refuse_links(out: Path) -> None:
    """Raises `StoreConflict` for a folder that holds a link, through which a file would leave it."""
    for path in out.rglob("*"):
        if path.is_symlink():
            raise StoreConflict(f"{path}: is a link, so nothing is fetched into {out}; give another folder with --out.")


def _there(out: Path, manifest: RunManifest) -> set[str]:
    """The files that are there and are those of the manifest; raises `StoreConflict` for any other."""
    known = {one.path: one for one in manifest.files}
    found = set[str]()
    for file in (path for path in out.rglob("*") if path.is_file()):
        name = file.relative_to(out).as_posix()
        if name.startswith(f"{LOCKS}/"):
            continue
        if file.name.startswith(".") and file.name.endswith(".partial"):
            file.unlink(missing_ok=True)
        elif name == MANIFEST and file.read_bytes() == manifest.packed():
            continue
        elif name in known and _described(name, file) == known[name]:
            found.add(name)
        else:
            raise StoreConflict(f"{file}: is none of the files of this run; give another folder with --out.")
    return found


def _fetch_file(place: RemoteFolder, one: SharedFile, out: Path) -> None:
    """Fetches a file; it has its name once it is known to be the one that was sent."""
    path, where = out / one.path, f"{place.shown}/{one.path}"
    digest, size = hashlib.sha256(), 0
    try:
        with atomic_file(path) as file:
            for block in place.blocks(one.path):
                size += len(block)
                if size > one.size:
                    raise SharingError(f"{where}: has more than the {one.size:,} bytes that the manifest says; {AGAIN}")
                digest.update(block)
                file.write(block)
            if size < one.size:
                raise SharingError(f"{where}: ends after {size:,} of {one.size:,} bytes; {AGAIN}")
            if digest.hexdigest() != one.sha256:
                raise SharingError(f"{where}: is damaged, its sha256 is not that of the manifest; {AGAIN}")
    except FileMissing:
        raise SharingError(f"{where}: is in the manifest and not there; {AGAIN}") from None
    except MMNeuronError:
        raise
    except OSError as error:
        raise StorageFailed(
            f"{path}: cannot be written ({error.strerror or error}); what was fetched is kept."
        ) from None
