"""What the shell offers behind an option: names of models, domains and methods, and folders of runs.

Called while someone types: nothing here loads torch before it must.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

RUNS = Path("runs")
"""Where the commands write unless told otherwise."""

OF_A_RUN = ("counts", "selection", "index.html")
"""One of these lies in every run."""


def models(incomplete: str) -> list[str]:
    """The models that need no download, and folders."""
    named = [one.name for one in entry_points(group="mmneuron_lens.checkpoints")]
    return [*_beginning(incomplete, named), *folders(incomplete)]


def domains(incomplete: str) -> list[str]:
    """The five domains; a corpus may have others."""
    from mmneuron_lens.corpora.sample import DOMAINS

    return _beginning(incomplete, DOMAINS)


def methods(incomplete: str) -> list[str]:
    """The ways to select neurons."""
    import mmneuron_lens.neurons.selection  # noqa: F401  (registers the methods)
    from mmneuron_lens.neurons.selectors.registry import SELECTORS

    return _beginning(incomplete, SELECTORS)


def several_methods(incomplete: str) -> list[str]:
    """The same behind a comma."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in methods(last)]


def runs(incomplete: str) -> list[str]:
    """Folders that hold a run, those in `runs/` first, then any folder."""
    near = [str(one) for one in sorted(RUNS.glob("*")) if any((one / name).exists() for name in OF_A_RUN)]
    return list(dict.fromkeys([*_beginning(incomplete, near), *folders(incomplete)]))


def folders(incomplete: str) -> list[str]:
    """Folders that begin so."""
    base = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    try:
        found = [str(one) for one in sorted(base.iterdir()) if one.is_dir()]
    except OSError:
        return []
    return [one for one in found if one.startswith(incomplete.removeprefix("./"))]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
