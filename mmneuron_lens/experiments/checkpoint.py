"""A checkpoint: how far a count has come, on disk, so that a count killed at any moment goes on where it was."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmneuron_lens.neurons.counts import LEFT_OUT, Counts, refuse_differences

DONE = "batches done"
"""Provenance of a count that is under way: how many of its batches are in it."""

WEIGHTS = "weights sampled"
"""Provenance of a count that is under way: a digest of some of each weight, which also tells models apart that were
loaded in memory and have no name."""

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

    def begun(self, empty: Counts, sampled: str) -> tuple[Counts, int]:
        """The counts so far and how many batches are in them; `empty` and 0 when there are none.

        Raises `ValueError` naming the file and every difference when it was begun with other samples or settings.
        """
        # What a kill in the middle of writing leaves behind.
        for part in self.path.parent.glob(f".{self.path.name}.*.partial"):
            part.unlink()
        if not self.path.is_file():
            return empty, 0
        held = Counts.load(self.path)
        wanted = replace(empty, provenance={**empty.provenance, WEIGHTS: sampled})
        try:
            refuse_differences(held, wanted, ignore=(DONE, LEFT_OUT), action="go on with")
        except ValueError as error:
            reason = str(error).removesuffix("; count both in the same way.")
            raise ValueError(f"{self.path}: {reason}; use the same settings, or delete the file.") from None
        done = held.provenance[DONE]
        kept = {name: value for name, value in held.provenance.items() if name not in (DONE, WEIGHTS)}
        return replace(held, provenance=kept), done

    def save(self, counts: Counts, done: int, sampled: str) -> None:
        """Writes the counts of the first `done` batches, atomically."""
        replace(counts, provenance={**counts.provenance, DONE: done, WEIGHTS: sampled}).save(self.path)

    def already(self, empty: Counts) -> Counts | None:
        """The finished counts, if they lie there and were made of the same samples in the same way."""
        if self.finished is None or not self.finished.is_file():
            return None
        counts = Counts.load(self.finished)
        try:
            refuse_differences(counts, empty, ignore=(LEFT_OUT,), action="take")
        except ValueError:
            return None
        return counts

    def clear(self) -> None:
        """Removes the counts under way, when the finished ones are written."""
        self.path.unlink(missing_ok=True)


def sampled_weights(module: torch.nn.Module) -> str:
    """The sha256 of every weight's name, shape and first 64 values: quick, also for a large model on a GPU."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        some = parameter.detach().reshape(-1)[:64].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
