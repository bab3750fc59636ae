"""The commands `mmneuron push` and `mmneuron pull`: a run's artifacts and page, to and from a URL."""

from __future__ import annotations

from mmneuron_lens.options import Run


def push(run: Run, url: str) -> None:
    """Copy a run's artifacts and page to a URL, with a card."""
    raise NotImplementedError(run, url)


def pull(url: str) -> None:
    """Copy what `push` wrote to a folder, and check it."""
    raise NotImplementedError(url)
