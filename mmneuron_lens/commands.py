"""What all commands share: errors in one line, caught here alone, and options from a file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from mmneuron_lens.echo import echo


class Commands(TyperGroup):
    """A problem with the input is one line on stderr and exit code 1; a fault of this program stays a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            echo("mmneuron: stopped; what was written so far is complete files.", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            # Not at the top: it would load torch for `--help`.
            from interventions.errors import MMNeuronError

            if not isinstance(error, MMNeuronError):
                raise
            echo(f"mmneuron: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


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
