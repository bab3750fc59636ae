"""A store: a folder in which the value of each key is made once, and never replaced by that of another key."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self, TypeVar

from filelock import FileLock, Timeout

from interventions.errors import InvalidValue, StorageFailed
from interventions.files import storage_errors, sweep
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.artifacts.format import dumps
from mmneuron_lens.artifacts.open_folder import OpenFolder
from mmneuron_lens.batching.gather import WHOLE, Keeper, Memory, Shard
from mmneuron_lens.runs.keys import Key, StoreConflict, differences, refusal
from mmneuron_lens.runs.pieces import Pieces

Say = Callable[[str], Any]
"""Tells the user what goes on, a line at a time."""

LOCKS = ".locks"


class StoreBusy(InvalidValue):
    """Another process makes the same value now."""


class Codec(Protocol):
    """A class whose values can be written with their key, and read with it; every artifact is one."""

    def save(self, path: str | Path, key: Mapping[str, Any] | None = None) -> None: ...

    @classmethod
    def load_with_key(cls, path: str | Path) -> tuple[Self, dict[str, Any] | None]: ...


T = TypeVar("T", bound=Codec)


class Store:
    """A run's folder; without one, values are made and kept by nobody."""

    def __init__(self, folder: str | Path | None, *, replace: bool = False, say: Say = lambda text: None) -> None:
        """
        - folder: made when something is written; None keeps nothing.
        - replace: a value with another key is made again in its place instead of being refused.
        - say: is told what is made and what is there already.
        """
        self.folder = None if folder is None else Path(folder)
        self.replace, self.say = replace, say
        self._open: OpenFolder | None = None
        self._locks: dict[Path, os.stat_result] = {}

    def path(self, key: Key) -> Path:
        """Where the value of a key lies. Raises `InvalidValue` without a folder, or for a path that leaves it."""
        if self.folder is None:
            raise InvalidValue(f"{key.path}: this store keeps nothing; give it a folder.")
        place = PurePosixPath(key.path)
        if place.is_absolute() or ".." in place.parts:
            raise InvalidValue(f"{key.path!r} leaves the run's folder; give a path inside it.")
        return self.folder / place

    def get_or_make(
        self, key: Key, make: Callable[[Keeper], T], codec: type[T], *, what: str = "", wait: bool = False
    ) -> T:
        """The value of a key: read if it is there, else made and written.

        - make: is given a keeper for the pieces of what takes long; what an earlier process kept there is there.
        - what: a line for the user; "already done: ..." when there is nothing to make.
        - wait: until another process has made it, instead of raising `StoreBusy`.

        Raises `StoreConflict` when the value of another key lies there, and no `replace` was asked for.
        """
        if self.folder is None:
            self._say(what, what)
            return make(Memory())
        with self.writing(key, wait=wait):
            value, pieces = self.get(key, codec), self.pieces(key)
            self._say(what if value is None else f"already done: {what}", what)
            if value is None:
                value = make(pieces)
                self.refuse_lost()
                value.save(self.path(key), key.facts)
            pieces.clear()
            return value

    def _say(self, text: str, what: str) -> None:
        if what:
            self.say(text)

    def get(self, key: Key, codec: type[T]) -> T | None:
        """The finished value of this very key, or None. Raises `StoreConflict` as `get_or_make`."""
        path = self.path(key)
        if not path.is_file():
            return None
        value, held = codec.load_with_key(path)
        if held is not None and dumps(held) == dumps(dict(key.facts)):
            return value
        if not self.replace:
            raise StoreConflict(refusal(path, differences(held or {}, key.facts)))
        return None

    def discard_other(self, key: Key, codec: type[T]) -> None:
        """Removes the value of another key that lies where this one would, said, if this store replaces."""
        if self.folder is not None and self.replace and self.path(key).is_file() and self.get(key, codec) is None:
            self.path(key).unlink()
            self.say(f"{self.path(key)}: was made otherwise, and is removed.")

    def pieces(self, key: Key, shard: Shard = WHOLE) -> Pieces:
        """What is kept of a value while it is made. `shard`: of a value that several processes make."""
        return Pieces(self.path(key), key.facts, str(shard), self.replace, self.say, self.refuse_lost)

    def refuse_lost(self) -> None:
        """Raises `StorageFailed` when the folder, or the lock of a value that is held, was taken away meanwhile."""
        if self._open is not None:
            self._open.refuse_gone()
        for file, held in self._locks.items():
            try:
                there = os.path.samestat(os.stat(file), held)
            except OSError:
                there = False
            if not there:
                raise StorageFailed(
                    f"{file}: was deleted while a value was being written, which another process may write now; what "
                    "was done is kept. Run the command again."
                )

    @contextmanager
    def writing(self, key: Key, shard: Shard = WHOLE, wait: bool = False) -> Iterator[None]:
        """Holds a value, or a shard of it, for this process alone; the hold goes with the process, however it ends.

        Raises `StoreBusy` naming the process that holds it, unless this may wait, and as `refuse_lost`.
        """
        if self.folder is None:
            raise InvalidValue(f"{key.path}: this store keeps nothing; give it a folder.")
        name = file_name(key.path if shard == WHOLE else f"{key.path} {shard}")
        file = self.folder / LOCKS / f"{name}.lock"
        holder = file.with_suffix(".holder")
        lock = FileLock(file)
        self.refuse_lost()
        with storage_errors(self.path(key)):
            self._open = self._open or OpenFolder(self.folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            if not _acquired(lock, holder, wait):
                who = _told(holder) or "another process"
                raise StoreBusy(f"{self.path(key)} is being written by {who}; wait for it, or give another --out.")
        try:
            with storage_errors(self.path(key)):
                self._locks[file] = os.stat(file)
            # Not made safe against a kill: it says who holds the lock, which a kill ends too.
            with storage_errors(self.path(key)):
                holder.write_text(f"process {os.getpid()} ({' '.join(sys.argv[:2])})", encoding="utf-8")
            if shard == WHOLE:
                # The holder of another shard may be writing the value at this moment.
                sweep(self.path(key))
            yield
            self.refuse_lost()
        finally:
            self._locks.pop(file, None)
            with suppress(OSError):
                holder.unlink(missing_ok=True)
            lock.release()


def _acquired(lock: FileLock, holder: Path, wait: bool) -> bool:
    """Whether this process has the lock now. One that has just got it is given a second to say which one it is."""
    for seconds in [-1.0] if wait else [0.0] + [0.05] * 20:
        try:
            lock.acquire(timeout=seconds)
            return True
        except Timeout:
            if _told(holder):
                break
    return False


def _told(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8")
    except OSError:
        return ""
