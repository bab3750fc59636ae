"""What was skipped in a run: the first lines of it said, all of them in a file of the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from interventions.files import storage_errors, sweep, write_atomically
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.runs.store import LOCKS

SHOWN = 10


def say_problems(problems: Problems, out: str | Path, say: Callable[[str], object], name: str = "problems.txt") -> None:
    """Says what was skipped, and what is noted beside; nothing where there is neither.

    - out: the run's folder; a file of this name in it holds all lines about what was skipped.
    """
    if not len(problems) and not problems.notes:
        return
    if not len(problems):
        say("\n".join(problems.notes))
        return
    file = Path(out) / name
    lock = Path(out) / LOCKS / f"{name}.lock"
    with storage_errors(file):
        lock.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may count into this folder; what a kill left of a file is removed by one at a time.
        with FileLock(lock):
            sweep(file)
            write_atomically(file, f"{problems}\n")
    counted, *lines = str(problems).splitlines()
    named = min(len(problems.found), SHOWN)
    more = [f"and {len(problems) - sum(one.rows for one in problems.found[:named])} more"]
    more = more if len(problems.found) > named else []
    say("\n".join([counted, *lines[:named], *more, *problems.notes, f"All of them: {file}"]))
