"""Resuming: the command line that a run's folder holds, looked at before it is run again.

A run's folder may come from elsewhere, and anyone can write a command into it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.runs.jobs import RunJobs

SENDS = ("count", "demo", "paper")
"""The commands that send jobs."""


def checked_command(jobs: RunJobs, commands: Mapping[str, Any]) -> tuple[list[str], Path]:
    """The words behind `mmneuron`, and the folder in which they are given.

    - jobs: those that the command started.
    - commands: of `mmneuron`, by name.

    Raises `InvalidValue` naming the file for another command than those that send jobs, words that it does not take,
    a folder that is gone, and one that writes to another folder than the run's.
    """
    file, facts = jobs.folder / "run.json", jobs.records.run
    words, where = list(facts.again), Path(facts.where)
    cure = "run the command yourself if it is yours."
    if not words or words[0] not in SENDS or not all(word.isprintable() for word in words):
        raise InvalidValue(f"{file}: again is {words!r:.200}, not one of the commands {', '.join(SENDS)}; {cure}")
    if not where.is_absolute() or not where.is_dir():
        raise InvalidValue(f"{file}: where is {str(where)!r:.200}, which is no folder here; {cure}")
    run = jobs.run.resolve()
    with chdir(where):
        try:
            out = commands[words[0]].make_context(words[0], words[1:]).params["out"].resolve()
        except Exception as error:
            # Whatever reading a command line raises, and asking it for help.
            raise InvalidValue(f"{file}: again is {words!r:.200}, which cannot be read ({error}); {cure}") from error
    if out != run:
        raise InvalidValue(f"{file}: its command writes to {out}, and this run is {run}; {cure}")
    return words, where


def closed_environment() -> dict[str, str]:
    """This environment, in which no module is found in the folder that one stands in."""
    path = os.environ.get("PYTHONPATH", "")
    absolute = os.pathsep.join(os.path.abspath(one) for one in path.split(os.pathsep) if one)
    return {**os.environ, "PYTHONPATH": absolute, "PYTHONSAFEPATH": "1"}
