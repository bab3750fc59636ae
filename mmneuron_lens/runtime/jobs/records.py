"""Records: what is known of every job of a run, on disk before anyone waits for it.

FOLDER/run.json       title, host, model, the jobs in order, and the command that started them
FOLDER/NAME.json      a job: its id at the server, host, state, attempts, last status, error, what to keep beside it
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from interventions.errors import InvalidValue
from interventions.files import write_atomically

State = Literal["waiting", "submitted", "lost", "failed", "cancelled"]

VERSION = 2


class RunFacts(TypedDict):
    """run.json. `again` is the command line, without keys, and `where` the folder in which it was given."""

    version: int
    title: str
    host: str
    model: str
    jobs: list[str]
    again: list[str]
    where: str


@dataclass(frozen=True)
class Record:
    """A job as it stands.

    - job: the server's id, None before the first; attempts: how often one was submitted.
    - facts: JSON to keep with the result, for a process that did not submit it.
    """

    name: str
    state: State = "waiting"
    job: str | None = None
    host: str = ""
    attempts: int = 0
    status: str = ""
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Records:
    """The jobs of one run, in a folder or, without one, in memory. Every file is whole or absent."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, Record] = {}

    def describe(self, title: str, host: str, model: str, jobs: Sequence[str], again: Sequence[str]) -> None:
        """Writes run.json."""
        if self.folder is not None:
            facts = RunFacts(
                version=VERSION, title=title, host=host, model=model, jobs=list(jobs), again=list(again),
                where=os.getcwd() if again else "",
            )  # fmt: skip
            write_atomically(self.folder / "run.json", json.dumps(facts, indent=1), private=True)

    @property
    def run(self) -> RunFacts:
        """run.json. Raises `InvalidValue` when there is none, or one of another version."""
        file = Path() if self.folder is None else self.folder / "run.json"
        if not file.is_file():
            raise InvalidValue(f"{self.folder} holds no jobs; `mmneuron jobs list` shows the runs that do.")
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            if run["version"] != VERSION:
                raise InvalidValue(f"{file}: version is {run['version']}, not {VERSION}; run the command again.")
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidValue(f"{file}: cannot be read ({error}); delete it and run the command again.") from error
        return run

    def record(self, name: str) -> Record:
        """A job's record; a fresh one when there is none, or one that cannot be read."""
        if self.folder is None:
            return self._known.get(name, Record(name))
        try:
            return Record(**json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Record(name)

    def write(self, record: Record, **changes: Any) -> Record:
        """Puts a record, with changes, on disk before returning it."""
        record = replace(record, **changes)
        self._known[record.name] = record
        if self.folder is not None:
            write_atomically(self.folder / f"{record.name}.json", json.dumps(asdict(record), indent=1), private=True)
        return record

    def forget(self, name: str) -> None:
        """The job's result is kept: nothing more needs to be known of it."""
        self._known.pop(name, None)
        if self.folder is not None:
            (self.folder / f"{name}.json").unlink(missing_ok=True)

    def known(self) -> list[Record]:
        """Every record that is there, by name."""
        if self.folder is None:
            return [self._known[name] for name in sorted(self._known)]
        files = sorted(file for file in self.folder.glob("*.json") if file.name != "run.json")
        return [self.record(file.stem) for file in files]
