"""What a terminal is shown: no text from outside is a command, a markup or an emoji code there.

`interventions` and rich are imported when something is shown, so that `--help` is quick.
"""

from __future__ import annotations

import codecs
import io
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.text import Text

_PLAIN = {
    "−": "-",
    "–": "-",
    "—": "-",
    "’": "'",
    "“": '"',
    "”": '"',
    "†": "+",
    "‡": "+",
    "×": "x",
    "…": "...",
    "≤": "<=",
}
"""Signs of our own for terminals that cannot show them."""


def write_anywhere() -> None:
    """On a terminal without UTF-8 (`LANG=C`), signs that it has not are written with those it has."""
    codecs.register_error("mmneuron.plain", _plainer)
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or ""
        if isinstance(stream, io.TextIOWrapper) and not encoding.lower().startswith("utf"):
            stream.reconfigure(errors="mmneuron.plain")


def _plainer(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or ascii(one)[1:-1] for one in lost), error.end


def echo(text: object, err: bool = False) -> None:
    """Prints lines on stdout, or on stderr if `err`; what cannot be printed is written as its escape."""
    from interventions.printable import printable

    typer.echo(printable(str(text), keep="\n"), err=err)


def plain(text: str) -> Text:
    """A cell, heading or title for rich that is shown as it is written."""
    from rich.text import Text

    from interventions.printable import printable

    return Text(printable(text))


def example(command: str) -> str:
    """The epilog of a command's help: a command line to paste."""
    return f"Example: [bold]{command}[/bold]"
