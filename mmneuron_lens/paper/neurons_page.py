"""The page of a run's neurons, written into its folder."""

from __future__ import annotations

from pathlib import Path

from interventions.errors import InvalidValue
from interventions.files import storage_errors, write_atomically
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.open_folder import OpenFolder
from mmneuron_lens.report.neurons_page import NeuronsPage, page_files, stale_files
from mmneuron_lens.report.page import INDEX
from mmneuron_lens.runs.neuron_sources import FOLDER, neuron_sources


def pages_beside(out: str | Path) -> tuple[tuple[str, str], ...]:
    """What the page of a run says lies beside it: the page of neurons, where there is one."""
    there = (Path(out) / FOLDER / f"{INDEX}.html").is_file()
    return (("Single neurons: what each answers to", f"{FOLDER}/{INDEX}.html"),) if there else ()


def publish_neurons(run: str | Path, *, most: int = 5000) -> Path:
    """Writes `neurons/index.html` and its files of data (`neurons/*.js`) from what the run holds; returns the page.

    - run: a folder with `neurons.parquet`; `examples/`, `words/`, `selection/` and `neurons/pictures/` are shown where
      they are there.
    - most: cards of a model at most: the selected neurons first, then those with the largest log-odds.

    The same inputs give the same bytes. Files of an earlier page are removed once the new one is there.

    Raises `RunError` for a folder without a table of neurons, `InvalidValue` for `most` below 1, `StorageFailed` naming
    a file that cannot be written.
    """
    if most < 1:
        raise InvalidValue(f"most is {most}; give the number of cards, 1 or more.")
    run, folder = Path(run), Path(run) / FOLDER
    page = NeuronsPage(
        tuple(neuron_sources(run)),
        most=most,
        back=("The run’s page", f"../{INDEX}.html"),
        beside=tuple((name, f"../{name}") for name in ("neurons.csv", "neurons.parquet") if (run / name).is_file()),
        versions=tuple(provenance()["versions"].items()),
    )
    with storage_errors(folder):
        kept = OpenFolder(folder)
    fresh: list[str] = []
    for name, text in page_files(page):
        write_atomically(folder / name, text)
        fresh.append(name)
    for name in stale_files([one.name for one in folder.iterdir()], fresh):
        # Another process may be publishing the page too.
        (folder / name).unlink(missing_ok=True)
    kept.refuse_gone()
    return folder / f"{INDEX}.html"
