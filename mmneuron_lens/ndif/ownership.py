"""Ownership: which of the machine's processes belong to a server, and ending these alone.

A number says nothing: process ids and sessions are given again. A process is a server's own when it carries the
server's mark in its environment, or is a recorded service: the same id, the same start, the server's folder as
working directory (redis overwrites its environment). With it belong its session, which is not given again
while a member lives, and its children.
"""

from __future__ import annotations

import os

import psutil

from mmneuron_lens.ndif.state import OwnServer

MARK = "MMNEURON_NDIF_SERVER"
"""The variable that holds a server's mark."""


def started(pid: int) -> float:
    """Seconds from boot to a process's start; unlike a time of day it stays when the clock is set."""
    # psutil keeps the time of day of a process that it has seen.
    return round(psutil.Process(pid).create_time() - psutil.boot_time(), 2)


def own(server: OwnServer) -> list[psutil.Process]:
    """The living processes of a server."""
    living = {process.pid: process for process in psutil.process_iter() if _is_living(process)}
    found = {pid for pid, process in living.items() if _is_marked(process, server) or _is_recorded(process, server)}
    sessions = {session for pid in found if (session := _session(pid)) is not None}
    found |= {pid for pid in living if _session(pid) in sessions}
    grown = True
    while grown:
        children = {pid for pid, process in living.items() if _parent(process) in found} - found
        found |= children
        grown = bool(children)
    return [living[pid] for pid in sorted(found)]


def leaders(server: OwnServer) -> dict[str, psutil.Process]:
    """By service, the very process that was started, if it still runs."""
    recorded = {process.pid: process for process in own(server) if _is_recorded(process, server)}
    return {name: recorded[pid] for name, (pid, _) in server.services.items() if pid in recorded}


def listening(server: OwnServer) -> set[int]:
    """The ports at which processes of a server listen."""
    found = set()
    for process in own(server):
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        found |= {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    return found


def end_processes(server: OwnServer, patience: float = 5.0) -> int:
    """End a server's processes and no other; returns how many.

    All are asked at once (SIGTERM), because ray's and gunicorn's children outlive a leader that is asked alone, and
    killed after `patience` seconds, which ray's head needs: it does not end when asked.
    """
    asked = own(server)
    for process in asked:
        _send(process, "terminate")
    _, alive = psutil.wait_procs(asked, timeout=patience)
    late = set(alive) | set(own(server))
    for process in late:
        _send(process, "kill")
    psutil.wait_procs(late, timeout=patience)
    return len(set(asked) | late)


def _send(process: psutil.Process, request: str) -> None:
    try:
        # psutil looks once more whether the id is still this process's.
        getattr(process, request)()
    except psutil.NoSuchProcess:
        return


def _is_living(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_marked(process: psutil.Process, server: OwnServer) -> bool:
    try:
        return process.environ().get(MARK) == server.mark
    except (psutil.Error, OSError):
        return False


def _is_recorded(process: psutil.Process, server: OwnServer) -> bool:
    try:
        is_recorded = (process.pid, started(process.pid)) in server.services.values()
        return is_recorded and process.cwd() == server.folder
    except (psutil.Error, OSError):
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None
