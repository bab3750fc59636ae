"""A progress bar in questions, tokens a second and time left; a line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, TextIO

from interventions.printable import printable
from mmneuron_lens.batching.progress import Todo

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""

LONG = 10.0
"""What took so many seconds leaves a line when it is done."""

FORMAT = "{desc}: {n_fmt} of {total_fmt}{unit}, {remaining} left{postfix} |{bar}|"
"""Numbers first: in a narrow terminal the bar is cut."""


def bar(items: Sequence[Any], name: str) -> Iterable[Any]:
    """What `progress=` of the stages takes: a bar in a terminal and in a notebook, lines in a log.

    Of pieces that hold questions these are counted, and what was done before this process does not count as its speed.
    """
    if in_notebook():
        return Shown(items, name, _notebook_bar)
    return Shown(items, name, _terminal_bar if sys.stderr.isatty() else None, sys.stderr)


class Shown:
    """Pieces of work that say how far they are.

    - bar: makes a bar of tqdm's settings; lines on `lines` where None.
    - lines: where lines go, what took long leaves one there too; none if None.
    """

    def __init__(
        self,
        items: Sequence[Any],
        name: str,
        bar: Callable[..., Any] | None,
        lines: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.items, self.name, self.lines, self.clock = items, printable(name), lines, clock
        self.sizes = items.questions if isinstance(items, Todo) else repeat(1)
        self.before = items.before if isinstance(items, Todo) else 0
        self.all = self.before + (sum(items.questions) if isinstance(items, Todo) else len(items))
        self.unit = " questions" if isinstance(items, Todo) else ""
        self.make, self.postfix = bar, ""

    def __iter__(self) -> Iterator[Any]:
        begun = self.clock()
        self.done, said = self.before, begun
        shown = None if self.make is None or not len(self.items) else self._bar(self.make)
        try:
            for item, size in zip(self.items, self.sizes, strict=False):
                yield item
                self.done += size
                if shown is not None:
                    shown.set_postfix_str(self.postfix, refresh=False)
                    shown.update(size)
                elif self.clock() - said >= EVERY and self.done < self.all:
                    said = self.clock()
                    self._say(f"{self._counted()}, {span(self._left(said - begun))} left{self._told()}")
        finally:
            if shown is not None:
                shown.close()
        took = self.clock() - begun
        if took >= LONG:
            self._say(f"{self._counted()}, done in {span(took)}{self._told()}")

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """What is said beside the numbers from the next piece on."""
        self.postfix = text

    def _bar(self, make: Callable[..., Any]) -> Any:
        # The mean since the beginning: batches are sorted by size, so that the last few say little.
        return make(
            total=self.all, initial=self.before, desc=self.name, unit=self.unit, bar_format=FORMAT, smoothing=0,
            leave=False, mininterval=0.5,
        )  # fmt: skip

    def _counted(self) -> str:
        return f"{self.name}: {self.done:,} of {self.all:,}{self.unit}"

    def _left(self, seconds: float) -> float:
        return seconds / max(self.done - self.before, 1) * (self.all - self.done)

    def _told(self) -> str:
        return f", {self.postfix}" if self.postfix else ""

    def _say(self, text: str) -> None:
        if self.lines is not None:
            print(text, file=self.lines, flush=True)


def span(seconds: float) -> str:
    """Seconds as a time: "0:42", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_notebook() -> bool:
    """Whether this is a kernel of Jupyter."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def _terminal_bar(**settings: Any) -> Any:
    from tqdm import tqdm

    return tqdm(file=sys.stderr, dynamic_ncols=True, **settings)


def _notebook_bar(**settings: Any) -> Any:
    """A widget where these are installed; otherwise a line on stdout, because stderr has a red ground there."""
    from importlib.util import find_spec

    if find_spec("ipywidgets") is None:
        from tqdm import tqdm

        return tqdm(file=sys.stdout, ncols=100, **settings)
    from tqdm.auto import tqdm

    return tqdm(**settings)
