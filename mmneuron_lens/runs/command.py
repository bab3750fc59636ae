"""The commands `mmneuron merge` and `mmneuron select --stability`. Exit codes: 0 done, 1 the input has a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `mmneuron count --shard i/n --out ...` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder to write the whole counts to.")],
) -> None:
    """Merge the shards of a count, from one folder or several, into the counts of one run, bit for bit."""
    from mmneuron_lens.runs.merging import merge_runs

    try:
        files = merge_runs(runs, out)
    except (ValueError, OSError) as error:
        typer.echo(f"mmneuron: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    for file in files:
        typer.echo(str(file))
    typer.echo(f"Next: mmneuron select {out}", err=True)


def print_stability(run: Path, fraction: float, percentile: float) -> None:
    """Prints and writes `tables/<model>.stability.csv`: how far two halves of so many tokens select the same neurons.

    Raises `ValueError` when a run holds no counts, or too few images.
    """
    from rich.console import Console

    from mmneuron_lens.artifacts.files import file_name
    from mmneuron_lens.neurons.stability import as_table, stability
    from mmneuron_lens.runs.stages import counted

    console = Console()
    console = console if console.is_terminal else Console(width=100)
    for counts in counted(run):
        found = stability(counts, fraction, percentile)
        console.print(as_table(found))
        file = run / "tables" / f"{file_name(found.model)}.stability.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        found.frame().write_csv(file)
        typer.echo(str(file))
