"""What all commands share: errors in one line, caught here alone, and options from a file."""

from __future__ import annotations

import os
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from mmneuron_lens.echo import echo, write_anywhere

STOPPED, NOBODY_READS = 130, 141
"""Exit codes besides 0, 1 and 2, as a shell gives them: Ctrl-C, and a reader such as `head` that went away."""

PANELS = (
    FIND := "Find neurons",
    LOOK := "Look at them",
    COMPARE := "Switch them off and compare",
    PAPER := "The paper",
    REMOTE := "Run on a server",
    SHARE := "Share",
    CHECK := "Check",
)
"""The panels of `mmneuron --help`, in this order."""


class Commands(TyperGroup):
    """A problem with the input is one line on stderr and exit code 1; a fault of this program stays a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of their panels, then as they were added."""
        panels = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
        return sorted(super().list_commands(ctx), key=lambda name: PANELS.index(panels[name]))

    def invoke(self, ctx: Any) -> Any:
        write_anywhere()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            echo("mmneuron: stopped; what was written so far is complete files.", err=True)
            raise typer.Exit(STOPPED) from None
        except BrokenPipeError:
            nobody_reads()
        except Exception as error:
            from mmneuron_lens.user_errors import REPORT, said

            line = said(error, sys.argv[1:])
            if line is None:
                error.add_note(REPORT)
                raise
            echo(f"mmneuron: {line}", err=True)
            if isinstance(error, OSError) and error.filename is None:
                _write_no_more()
            raise typer.Exit(1) from None


def nobody_reads() -> None:
    """Ends the program in silence, because what reads its output went away."""
    _write_no_more()
    raise typer.Exit(NOBODY_READS)


def _write_no_more() -> None:
    """What is still to be written to stdout would raise when Python closes it."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plan_file(context: typer.Context, file: Path | None) -> Path | None:
    """Options of a command from a TOML file, under those of the command line: `random-draws = 5`.

    Raises `InvalidValue` naming the file and the key or line for a file that is not TOML, or an option that the command
    does not have.
    """
    if file is None:
        return None
    from interventions.errors import FileMissing, InvalidValue
    from interventions.sites import unknown

    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileMissing(
            f"{file}: cannot be read ({error.strerror}); give a TOML file with this command's options."
        ) from None
    except ValueError as error:
        raise InvalidValue(f"{file}: not TOML ({error}); write lines such as: batch-size = 16") from None
    options = {str(option.name): option for option in context.command.params if option.name != "plan"}
    # By their long names, as on the command line.
    longer = {name.lstrip("-").removeprefix("no-"): option for option in options.values() for name in option.opts}
    settings = {}
    for key, value in given.items():
        option = longer.get(key.replace("_", "-")) or options.get(key.replace("-", "_"))
        if option is None:
            choices = sorted(name for name in longer if len(name) > 1)
            raise InvalidValue(f"{file}: {unknown('option', key, choices)}")
        settings[str(option.name)] = value
    context.default_map = {**(context.default_map or {}), **settings}
    return file
