"""How the selection changes with tokens, as a table for a terminal and a file."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from interventions.files import write_atomically
from mmneuron_lens.artifacts.digits import interval, number
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.echo import plain
from mmneuron_lens.neurons.stability import Stability
from mmneuron_lens.report.csv_files import csv


def stability_table(found: Stability) -> Table:
    """The rows of `Stability.frame` for a terminal."""
    table = Table(title=plain(f"{found.model}: overlap of the selections from two parts of the data"))
    for name in ("module", "site", "buckets", "tokens", "Jaccard [95 % of splits]"):
        table.add_column(name, justify="left" if name in ("module", "site") else "right")
    for row in found.frame().iter_rows(named=True):
        sizes = (number(row["buckets"]), number(row["tokens"]))
        overlap = interval(row["jaccard"], row["low"], row["high"])
        table.add_row(plain(row["module"]), plain(row["site"]), *sizes, overlap)
    return table


def save_stability(found: Stability, out: str | Path) -> Path:
    """Writes `tables/MODEL.stability.csv` in a run's folder; returns the file."""
    file = Path(out) / "tables" / f"{file_name(found.model)}.stability.csv"
    write_atomically(file, csv(found.frame()))
    return file
