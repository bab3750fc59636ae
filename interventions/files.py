"""Files: written whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from interventions.errors import StorageFailed


def write_atomically(path: str | Path, content: bytes | str, private: bool = False) -> None:
    """Writes a file, and the folder it lies in, so that a reader, or a kill, finds the old content or the new.

    - path: where the file will lie; its folder is made.
    - content: bytes, or text that is written as UTF-8.
    - private: no other user may read the file, or the folder if it is made here.

    Raises `StorageFailed` naming the file when the disk is full or the folder cannot be written.
    """
    with storage_errors(path), atomic_file(path, private) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: str | Path, private: bool = False) -> Generator[BinaryIO]:
    """A file that takes its name, and the place of an old one, when the block ends; if it raises, nothing is left.

    Arguments as of `write_atomically`. Raises `OSError`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    path.parent.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    mode = 0o600 if private else 0o666
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
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


def sweep(path: str | Path) -> None:
    """Removes what a kill in the middle of writing a file left beside it; only the file's one writer may call this."""
    path = Path(path)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        part.unlink(missing_ok=True)


@contextmanager
def storage_errors(path: str | Path) -> Generator[None]:
    """Raises every `OSError` of what is done inside as `StorageFailed`, naming this file."""
    try:
        yield
    except StorageFailed:
        raise
    except OSError as error:
        raise StorageFailed(
            f"{path}: cannot be written ({error.strerror or error}); what was written before it is complete."
        ) from error
