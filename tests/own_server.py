"""A server of one's own, recorded as `mmneuron ndif up` records it, with a test's processes as its services."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from mmneuron_lens.cli import app
from mmneuron_lens.ndif import services
from mmneuron_lens.ndif.ownership import MARK
from mmneuron_lens.ndif.state import PORTS, SERVICES, OwnServer, State, new_token

FAKE = Path(__file__).parent / "fake_services.py"


def asked(*words: Any) -> tuple[int, str]:
    """Exit code and output of `mmneuron ndif ...`."""
    result = CliRunner().invoke(app, ["ndif", *map(str, words)])
    return result.exit_code, result.output.strip()


def server_in(state: State, **changes: Any) -> OwnServer:
    """A server on a CPU, saved in the folder; nothing of it runs."""
    facts: dict[str, Any] = {
        "folder": str(state.folder),
        "token": new_token(),
        "ports": dict(zip(PORTS, services.free_ports(len(PORTS)), strict=True)),
        "cpu": True,
        "sandbox": False,
        "dtype": "float32",
        "threads": 1,
        "offline": True,
    }
    server = OwnServer(**{**facts, **changes})
    state.save(server)
    return server


def start_service(state: State, name: str, kind: str, status: Path | None = None) -> None:
    """Start a fake service, recorded and marked as a real one is, and wait until it listens."""
    server = state.known()
    port = str(services.port_of(server, name))
    command = [sys.executable, FAKE, kind, port, status or os.devnull]
    services._service(state, name, command, {"PATH": os.defpath, MARK: server.mark})
    if kind != "none":
        services._until_open(state, name)


def start_all(state: State, deployments: dict[str, Any], **changes: Any) -> OwnServer:
    """Every service, the API telling of these deployments."""
    server_in(state, **changes)
    told = state.folder / "told.json"
    told.write_text(json.dumps({"deployments": deployments}))
    for name, kind in zip(SERVICES, ("redis", "http", "port", "http"), strict=True):
        start_service(state, name, kind, told)
    return state.known()


def start_foreign(*words: str, **settings: Any) -> subprocess.Popen[bytes]:
    """A process of somebody else: a session of its own, no mark, another working directory."""
    settings = {"start_new_session": True, "stdout": subprocess.PIPE, "cwd": "/", **settings}
    return subprocess.Popen([sys.executable, *words], **settings)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
