"""A checkpoint: how far a count has come, on disk, so that a count killed at any moment goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import LEFT_OUT, Counts, refuse_differences

DONE = "batches done"
"""Provenance of a count that is under way: how many of its batches are in it."""

SECONDS = 60.0


@dataclass(frozen=True)
class Checkpoint:
    """Where a count under way lies, and where it will lie when it is finished.

    path: rewritten as a whole every `seconds`, so a reader finds the last complete state. finished: the file of the
    finished counts, which are not counted again, or None. clock: in seconds.
    """

    path: Path
    finished: Path | None = None
    seconds: float = SECONDS
    clock: Callable[[], float] = time.monotonic

    def begun(self, empty: Counts) -> tuple[Counts, int]:
        """The counts so far and how many batches are in them; `empty` and 0 when there are none.

        Raises `ValueError` naming the file and every difference when it was begun with other samples or settings.
        """
        _sweep(self.path)
        if not self.path.is_file():
            return empty, 0
        held = Counts.load(self.path)
        try:
            refuse_differences(held, empty, ignore=(DONE, LEFT_OUT), action="go on with")
        except ValueError as error:
            reason = str(error).removesuffix("; count both in the same way.")
            raise InvalidValue(f"{self.path}: {reason}; use the same settings, or delete the file.") from None
        done = held.provenance[DONE]
        kept = {name: value for name, value in held.provenance.items() if name != DONE}
        return replace(held, provenance=kept), done

    def save(self, counts: Counts, done: int) -> None:
        """Writes the counts of the first `done` batches, atomically."""
        replace(counts, provenance={**counts.provenance, DONE: done}).save(self.path)

    def already(self, empty: Counts) -> Counts | None:
        """The finished counts, if they lie there and were made of the same samples in the same way."""
        if self.finished is None:
            return None
        _sweep(self.finished)
        if not self.finished.is_file():
            return None
        counts = Counts.load(self.finished)
        try:
            refuse_differences(counts, empty, ignore=(LEFT_OUT,), action="take")
        except ValueError:
            return None
        return counts

    def finish(self, counts: Counts) -> None:
        """Writes the finished counts, unless they lie there, and removes those under way."""
        if self.finished is not None and self.already(counts) is None:
            counts.save(self.finished)
        _sweep(self.path)
        self.path.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Removes what a kill in the middle of writing a file leaves beside it."""
    for part in path.parent.glob(f".{path.name}.*.partial"):
        part.unlink()
