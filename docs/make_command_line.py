"""Writes the commands of docs/command-line.md from the program itself, so that the page cannot drift.

python docs/make_command_line.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer.main

from mmneuron_lens.cli import app
from mmneuron_lens.commands import PANELS

PAGE = Path(__file__).parent / "command-line.md"

MARK = "<!-- What follows is written by docs/make_command_line.py. -->\n"


def written(page: str) -> str:
    """The page with every command as it is now; what stands above the mark stays."""
    return page.partition(MARK)[0] + MARK + "\n" + "\n".join(lines())


def lines() -> Iterator[str]:
    """The commands, panel by panel."""
    root: Any = typer.main.get_command(app)
    for panel in PANELS:
        yield f"## {panel}\n"
        for name, command in root.commands.items():
            if command.rich_help_panel == panel:
                for title, one in commands_of(f"mmneuron {name}", command):
                    yield from said(title, one)


def commands_of(title: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The command, or those of the group, with what is typed before their options."""
    below = getattr(command, "commands", None)
    if below is None:
        yield title, command
        return
    for name, one in below.items():
        yield from commands_of(f"{title} {name}", one)


def example_of(command: Any) -> str:
    """The command line of an epilog."""
    return re.sub(r"\[/?bold\]", "", command.epilog or "").removeprefix("Example: ")


def said(title: str, command: Any) -> Iterator[str]:
    """One command: what it does, its example, its options."""
    yield f"### `{title}`\n"
    yield "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n")) + "\n"
    yield f"```\n{example_of(command)}\n```\n"
    shown = [one for one in command.params if one.name != "help"]
    if shown:
        yield "| option | is |\n| --- | --- |"
        hints = get_type_hints(command.callback)
        yield from (f"| {named(one, hints[one.name])} | {cell(one.help or '')}{default(one)} |" for one in shown)
        yield ""


def named(option: Any, hint: Any) -> str:
    """Its spellings, with what it takes."""
    if option.param_type_name == "argument":
        return f"`{(option.metavar or option.name).upper()}`"
    takes = "" if option.is_flag else f" {option.metavar or kind(hint)}"
    return ", ".join(f"`{one}{takes}`" for one in (*option.opts, *option.secondary_opts))


def kind(hint: Any) -> str:
    """What a type takes, as a word or its choices."""
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    inner = [one for one in get_args(hint) if one is not type(None)]
    return kind(inner[0]) if inner else {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(hint, "TEXT")


def default(option: Any) -> str:
    """What it is where it is left out, unless that says nothing."""
    if option.required:
        return " Needed."
    value = option.default
    if value in (None, False, (), [], ""):
        return ""
    return f" Default: `{str(value).lower() if isinstance(value, bool) else value}`."


def cell(text: str) -> str:
    """A cell of a table of Markdown."""
    return " ".join(text.split()).replace("\\[", "[").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
