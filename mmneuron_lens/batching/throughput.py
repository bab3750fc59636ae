"""Throughput: tokens a second and memory, shown beside the progress of a piece of work."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


class Throughput:
    """Pieces of work as a progress bar gives them; `tell` shows tokens a second and memory beside the bar.

    The bar itself knows the time left. Anything with tqdm's `set_postfix_str` is told, everything else is left alone.
    Where no tokens are counted, only memory is said.
    """

    def __init__(self, pieces: Iterable[Any], clock: Callable[[], float]) -> None:
        self.pieces, self.clock = pieces, clock
        self.begun = self.last = clock()
        self.tokens = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pieces)

    def tell(self, tokens: int) -> None:
        """Says that so many tokens more are counted."""
        self.tokens += tokens
        show = getattr(self.pieces, "set_postfix_str", None)
        if show is not None:
            rate = self.tokens / max(self.clock() - self.begun, 1e-9)
            speed = f"{rate:,.0f} tokens/s, " if self.tokens else ""
            show(f"{speed}{memory():.1f} GiB", refresh=False)

    def due(self, seconds: float) -> bool:
        """Whether so many seconds have passed since this last said yes, or since the beginning."""
        now = self.clock()
        if now - self.last < seconds:
            return False
        self.last = now
        return True


def memory() -> float:
    """The most memory this process has held, in GiB: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
