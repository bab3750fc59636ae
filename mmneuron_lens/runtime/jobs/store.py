"""Store: a folder that remembers every shard's job id before anyone waits for it, and every result once.

<folder>/run.json             title, host, model, shards in order, and the command that started it
<folder>/jobs/<key>.json      the shard's job: id, host, state, attempts, last status, error
<folder>/facts/<key>.json     what to keep with its result
<folder>/results/<key>.safetensors
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from interventions.errors import InvalidValue
from mmneuron_lens.runtime.jobs.returned import read_returned, write_returned

State = Literal["waiting", "submitted", "lost", "failed", "cancelled"]

VERSION = 1


class JobsBusy(InvalidValue):
    """Another process is at work on the same jobs."""


@dataclass(frozen=True)
class Record:
    """A shard's job as it stands on disk. job: the server's id, None before the first; attempts: jobs submitted."""

    key: str
    state: State = "waiting"
    job: str | None = None
    host: str = ""
    attempts: int = 0
    status: str = ""
    error: str = ""


class JobStore:
    """The jobs of one run in a folder. Safe against being killed at any moment: every file is whole or absent."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def describe(self, **facts: Any) -> None:
        """Write run.json: title, host, model, shards (keys in order), again (the command line, without keys)."""
        _write_json(self.folder / "run.json", {"version": VERSION, **facts})

    @property
    def run(self) -> dict[str, Any]:
        """run.json. Raises `ValueError` when the folder holds no jobs, or those of a newer version."""
        file = self.folder / "run.json"
        if not file.is_file():
            raise InvalidValue(f"{self.folder} holds no jobs; `mmneuron jobs list` shows the folders that do.")
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["version"] > VERSION:
            raise InvalidValue(f"{file}: version is {run['version']}, newer than {VERSION}; upgrade mmneuron-lens.")
        return run

    def record(self, key: str) -> Record:
        """A shard's record; a fresh one when there is none."""
        file = self._record_file(key)
        return Record(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else Record(key)

    def write(self, record: Record, **changes: Any) -> Record:
        """Put a record, with changes, on disk before returning it."""
        record = replace(record, **changes)
        _write_json(self._record_file(record.key), asdict(record))
        return record

    def keep_facts(self, key: str, facts: dict[str, Any]) -> None:
        """Remember what to keep with a result, for a process that did not submit the job."""
        _write_json(self.folder / "facts" / f"{key}.json", facts)

    def facts(self, key: str) -> dict[str, Any]:
        file = self.folder / "facts" / f"{key}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def is_done(self, key: str) -> bool:
        return self._result_file(key).is_file()

    def keep(self, key: str, returned: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write a shard's result, unless it is there: the first one stands, whatever arrives later."""
        if not self.is_done(key):
            write_returned(self._result_file(key), returned, facts)

    def result(self, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the shard's job returned, and the facts kept with it."""
        return read_returned(self._result_file(key))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder; the lock goes with the process, however it ends. Raises `JobsBusy` when it is held."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobsBusy(
                    f"{self.folder}: another process is at work on these jobs; end it, or see `mmneuron jobs watch`."
                ) from None
            yield

    def _record_file(self, key: str) -> Path:
        return self.folder / "jobs" / f"{key}.json"

    def _result_file(self, key: str) -> Path:
        return self.folder / "results" / f"{key}.safetensors"


def default_folder() -> Path:
    """Where jobs lie unless told otherwise: $MMNEURON_JOBS, or mmneuron-lens/jobs in the user's state folder."""
    if "MMNEURON_JOBS" in os.environ:
        return Path(os.environ["MMNEURON_JOBS"])
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mmneuron-lens" / "jobs"


def stores(folder: str | Path) -> list[JobStore]:
    """The runs under a folder (or the one that it is), by name."""
    folder = Path(folder)
    return [
        JobStore(file.parent) for file in [folder / "run.json", *sorted(folder.glob("*/run.json"))] if file.is_file()
    ]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with open(partial, "x", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
