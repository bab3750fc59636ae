"""Progress: how pieces of work are shown while they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps the pieces of a piece of work, named, for instance in a progress bar; it must yield them all, in order."""


def quietly(items: Sequence[Any], name: str) -> Iterable[Any]:
    """No progress shown."""
    return items
