"""What a terminal is shown: no text from outside is a command, a markup or an emoji code there.

`interventions` and rich are imported when something is shown, so that `--help` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.text import Text


def echo(text: object, err: bool = False) -> None:
    """Prints lines on stdout, or on stderr if `err`; what cannot be printed is written as its escape."""
    from interventions.printable import printable

    typer.echo(printable(str(text), keep="\n"), err=err)


def plain(text: str) -> Text:
    """A cell, heading or title for rich that is shown as it is written."""
    from rich.text import Text

    from interventions.printable import printable

    return Text(printable(text))
