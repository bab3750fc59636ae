"""The command `mmneuron doctor`: what of this machine fits, what will be slow, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mmneuron_lens.echo import echo

if TYPE_CHECKING:
    from rich.table import Table

    from mmneuron_lens.doctor.diagnosis import Diagnosis

NOT_NEEDED = "Not needed: a browser, LaTeX, a database, a server, root."


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Say what of this machine fits, what will be slow, and what to do: versions, devices, memory, disk, NDIF, extras.

    Takes a few seconds, loads no model and needs no network. Exit code 1 where something is a problem.
    """
    from mmneuron_lens.doctor.packages import all_states, version_line
    from mmneuron_lens.printing import console

    checks = all_checks()
    states = all_states(checks)
    if as_json:
        echo(json.dumps({"version": version_line(), **states, "checks": [asdict(one) for one in checks]}, indent=2))
    else:
        echo(version_line())
        shown = console()
        for group in dict.fromkeys(one.group for one in checks):
            shown.print()
            shown.print(doctor_table(group, [one for one in checks if one.group == group]))
        shown.print()
        echo(f"{NOT_NEEDED}\n{states['ok']} ok, {states['note']} notes, {states['problem']} problems.")
    raise typer.Exit(1 if states["problem"] else 0)


def all_checks() -> list[Diagnosis]:
    """Everything that is looked at, group by group."""
    from mmneuron_lens.doctor import machine, packages, services

    return [
        *packages.package_checks(),
        *services.shadow_checks(),
        *machine.device_checks(),
        machine.memory_check(),
        *machine.disk_checks(),
        *services.ndif_checks(),
        *services.hub_checks(),
        *packages.extra_checks(),
        *machine.speed_checks(),
    ]


def doctor_table(group: str, checks: Sequence[Diagnosis]) -> Table:
    """A group of checks; the next step stands below what was found."""
    from rich.table import Table
    from rich.text import Text

    from mmneuron_lens.echo import plain

    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table(
        title=plain(group), title_justify="left", box=None, show_header=False, title_style="bold", pad_edge=False
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in checks:
        said = plain(one.found)
        if one.next_step:
            said = Text.assemble(said, "\n", plain(f"next: {one.next_step}"))
        table.add_row(Text(one.state, style=colours[one.state]), plain(one.name), said)
    return table
