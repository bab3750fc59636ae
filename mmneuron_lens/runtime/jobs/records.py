"""Records: what is known of every job of a run, on disk before anyone waits for it.

FOLDER/run.json       title, host, model, the jobs in order, and the command that started them
FOLDER/NAME.json      a job: its id at the server, host, state, attempts, last status, error, what to keep beside it
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from interventions.errors import FileMissing, InvalidValue
from mmneuron_lens.artifacts.file_names import LONGEST
from mmneuron_lens.artifacts.fitting import refuse_types, refuse_unless
from mmneuron_lens.artifacts.format import ArtifactError, read_lines, unpacking, write_lines

State = Literal["waiting", "submitted", "lost", "failed", "cancelled"]

RUN, JOB = "jobs of a run", "job"
"""The kinds of the files."""


@dataclass(frozen=True)
class RunFacts:
    """run.json. `again` is the command line, without keys, and `where` the folder in which it was given."""

    title: str
    host: str
    model: str
    jobs: tuple[str, ...]
    again: tuple[str, ...]
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
            where = os.getcwd() if again else ""
            facts = RunFacts(title, host, model, tuple(map(_refuse_name, jobs)), tuple(again), where)
            write_lines(self.folder / "run.json", RUN, [], asdict(facts), private=True)

    @property
    def run(self) -> RunFacts:
        """run.json. Raises `InvalidValue` when there is none, or one that is damaged."""
        file = Path() if self.folder is None else self.folder / "run.json"
        if not file.is_file():
            raise InvalidValue(f"{self.folder} holds no jobs; `mmneuron jobs list` shows the runs that do.")
        _, document = read_lines(file, RUN)
        with unpacking(file, RUN):
            document.pop("provenance", None)
            run = RunFacts(**{**document, **{name: tuple(document[name]) for name in ("jobs", "again")}})
            refuse_types(run)
            for name in run.jobs:
                _refuse_name(name)
        return run

    def record(self, name: str) -> Record:
        """A job's record; a fresh one when there is none, or one that is damaged: such a job is sent again.

        Raises `InvalidValue` for what cannot be the name of a job.
        """
        if self.folder is None:
            return self._known.get(name, Record(name))
        file = self.folder / f"{_refuse_name(name)}.json"
        try:
            _, document = read_lines(file, JOB)
            document.pop("provenance", None)
            with unpacking(file, JOB):
                record = Record(**document)
                refuse_types(record)
                refuse_unless(record.name == name, "name", f"is {record.name!r:.80}")
        except (FileMissing, ArtifactError):
            return Record(name)
        return record

    def write(self, record: Record, **changes: Any) -> Record:
        """Puts a record, with changes, on disk before returning it."""
        record = replace(record, **changes)
        self._known[record.name] = record
        if self.folder is not None:
            write_lines(self.folder / f"{_refuse_name(record.name)}.json", JOB, [], asdict(record), private=True)
        return record

    def forget(self, name: str) -> None:
        """The job's result is kept: nothing more needs to be known of it."""
        self._known.pop(name, None)
        if self.folder is not None:
            (self.folder / f"{_refuse_name(name)}.json").unlink(missing_ok=True)

    def known(self) -> list[Record]:
        """Every record that is there, by name."""
        if self.folder is None:
            return [self._known[name] for name in sorted(self._known)]
        files = sorted(file for file in self.folder.glob("[!.]*.json") if file.name != "run.json")
        return [self.record(file.stem) for file in files]


def _refuse_name(name: str) -> str:
    """The name itself. Raises `InvalidValue` for one that is no file in the folder of the records."""
    if name == "run" or name[:1] in ("", ".") or {*name} & {*"/\\"} or not name.isprintable() or len(name) > LONGEST:
        raise InvalidValue(f"{name[:80]!r} is no name of a job, which has a file of its own; give one without slashes.")
    return name
