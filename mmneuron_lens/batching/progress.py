"""Progress: how pieces of work are shown while they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps the pieces of a piece of work, named, for instance in a progress bar; it must yield them all, in order."""


def quietly(items: Sequence[Any], name: str) -> Iterable[Any]:
    """No progress shown."""
    return items


class Todo(list[Any]):
    """Pieces that are still to be done.

    - questions: in each of them.
    - before: how many questions an earlier process has done, which says nothing of how fast this one is.
    """

    def __init__(self, items: Iterable[Any], questions: Sequence[int], before: int = 0) -> None:
        super().__init__(items)
        self.questions, self.before = tuple(questions), before
