"""The commands `mmneuron corpora ...`. Exit codes: 0 all is there, 1 something is missing or bad, 2 wrong usage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmneuron_lens.echo import echo, example

corpora_app = typer.Typer(
    name="corpora", help="Corpora as their authors publish them: checked before a run.", no_args_is_help=True
)


@corpora_app.callback()
def _corpora() -> None:
    """Keeps `check` a command of its own while it is the only one."""


@corpora_app.command(epilog=example("mmneuron corpora check my-corpora --decode"))
def check(
    folder: Annotated[Path, typer.Argument(help="A folder with subfolders vqav2, rsvqa, pmc_vqa, docvqa and lingoqa.")],
    records: Annotated[int, typer.Option(min=0, help="Good records of each split to look at; 0 for all.")] = 1000,
    decode: Annotated[bool, typer.Option(help="Decode each image wholly, which alone finds truncated ones.")] = False,
) -> None:
    """Say what was found in a folder of corpora, what is missing, and where to get it."""
    from rich.console import Console

    from mmneuron_lens.corpora.check import as_table, check_corpora, exit_code, problem_lines

    checked = check_corpora(folder, records or None, decode)
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(as_table(checked))
    for line in problem_lines(checked):
        echo(line, err=True)
    raise typer.Exit(exit_code(checked))
