"""The command `mmneuron neurons`: a table of a run's neurons, and a page with what each answers to."""

from __future__ import annotations

from mmneuron_lens.options import Run


def neurons(run: Run) -> None:
    """Show what the neurons of a run answer to: a table, and a page with pictures."""
    raise NotImplementedError(run)
