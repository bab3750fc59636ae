"""The command `mmneuron compare`: which selector's neurons matter, against as many random ones."""

from __future__ import annotations

from mmneuron_lens.options import Run


def compare(run: Run) -> None:
    """Say which selector's neurons matter to their domain's answers, against as many random ones."""
    raise NotImplementedError(run)
