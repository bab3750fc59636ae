"""State: the folder that remembers what was started: ports, models, process ids and logs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interventions.files import write_atomically


def default_folder() -> Path:
    """`$MMNEURON_NDIF_STATE`, or `mmneuron/ndif` in the user's cache folder."""
    given = os.environ.get("MMNEURON_NDIF_STATE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "mmneuron" / "ndif"


@dataclass(frozen=True)
class Process:
    """A process: pid, parent, session, and its start in clock ticks since boot, which no later process shares."""

    pid: int
    parent: int
    session: int
    started: int


def processes() -> dict[int, Process]:
    """All living processes by pid, from /proc. Zombies are left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold spaces; fields 3 on follow the last one.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(entry.name)] = Process(int(entry.name), int(fields[1]), int(fields[3]), int(fields[19]))
    return found


class State:
    """Files in a folder: `server.json` (ports and models), `NAME.pid` (pid and start) and `NAME.log` a service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def record(self, name: str, pid: int) -> None:
        """Remember a service's leader. Raises `KeyError` when it is already gone."""
        write_atomically(self.folder / f"{name}.pid", f"{pid} {processes()[pid].started}\n")

    def leaders(self) -> dict[str, tuple[int, int]]:
        """`(pid, start)` by service, dead or alive."""
        read = {path.stem: path.read_text().split() for path in sorted(self.folder.glob("*.pid"))}
        return {name: (int(pid), int(started)) for name, (pid, started) in read.items()}

    def alive(self) -> dict[str, bool]:
        """By service, whether the very process that was started still runs."""
        now = processes()
        return {name: pid in now and now[pid].started == started for name, (pid, started) in self.leaders().items()}

    def server(self) -> dict[str, Any]:
        """Ports and models of the last start, or an empty dict."""
        path = self.folder / "server.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def save_server(self, server: dict[str, Any]) -> None:
        write_atomically(self.folder / "server.json", json.dumps(server, indent=1) + "\n")

    def forget(self) -> None:
        for path in [*self.folder.glob("*.pid"), self.folder / "server.json"]:
            path.unlink(missing_ok=True)

    def end(self, patience: float = 5.0) -> int:
        """End every recorded service with all it started, and nothing else; returns how many processes.

        Each service leads a session of its own, so its processes are that session and their descendants, also after
        the leader has died. Asked first (SIGTERM), killed after `patience` seconds, which ray's head
        needs: it does not end when asked.
        """
        leaders = self.leaders()
        chosen = _belonging(leaders.values(), processes())
        # Asked all at once: ray's and gunicorn's own children outlive a leader that is asked alone.
        _signal(chosen, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and _still(chosen):
            time.sleep(0.1)
        late = {**_still(chosen), **_belonging(leaders.values(), processes())}
        _signal(late, signal.SIGKILL)
        self.forget()
        return len({**chosen, **late})


def _belonging(leaders: Iterable[tuple[int, int]], now: dict[int, Process]) -> dict[int, Process]:
    # A pid that now belongs to a younger process says nothing about its session.
    sessions = {pid for pid, started in leaders if pid not in now or now[pid].started == started}
    found = {pid: one for pid, one in now.items() if one.session in sessions}
    grown = True
    while grown:
        children = {pid: one for pid, one in now.items() if one.parent in found and pid not in found}
        found.update(children)
        grown = bool(children)
    return found


def _still(some: dict[int, Process]) -> dict[int, Process]:
    now = processes()
    return {pid: one for pid, one in some.items() if pid in now and now[pid].started == one.started}


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
