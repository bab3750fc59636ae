"""A folder that must stay where it is while a run is written into it."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path

from interventions.errors import StorageFailed


class OpenFolder:
    """A folder, made unless it is there, and known again whatever takes its name later."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with suppress(FileExistsError):
            self.path.mkdir(parents=True)
        # Open, so that no other folder gets its number on the disk.
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._descriptor)

    def refuse_gone(self) -> None:
        """Raises `StorageFailed` when it was deleted, moved, or replaced by something else."""
        try:
            there = os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            there = False
        if not there:
            raise StorageFailed(
                f"{self.path}: was deleted, moved or replaced while it was being written to, and what was written is "
                "not there any more; run the command again."
            )
