"""Environment: the server's own virtual environment, made once and pinned to the version."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from interventions.errors import ServiceFailed
from interventions.files import write_atomically

CONSTRAINTS = Path(__file__).parent / "server-constraints.txt"

# torch first and alone: a looser request may take a build of several gigabytes. ndif's metadata asks for Python 3.12;
# it runs on 3.11 as well.
STEPS = (
    ("torch", ["torch"]),
    ("ndif, ray and nnsight", ["--ignore-requires-python", "ndif[api,ray]", "nnsight", "transformers"]),
    ("the object store and Pillow", ["moto[server]", "pillow"]),
)


def server_python(state: Path) -> Path:
    """The interpreter of `$MMNEURON_NDIF_ENV`, or of the environment in the state folder. It need not exist."""
    given = os.environ.get("MMNEURON_NDIF_ENV")
    return (Path(given) if given else state / "environment") / "bin" / "python"


def is_ready(state: Path) -> bool:
    """Whether the environment was made completely and from the constraints of this version."""
    python = server_python(state)
    if os.environ.get("MMNEURON_NDIF_ENV"):
        return python.is_file()
    mark = python.parent.parent / "ready"
    return mark.is_file() and mark.read_text() == _fingerprint()


def prepare(state: Path, say: Callable[[str], None]) -> Path:
    """Make the environment if it is not ready, saying each step; returns its interpreter.

    About 1.7 GB and three minutes. Raises `OSError` with the last line of pip and the log's place.
    """
    python = server_python(state)
    if is_ready(state):
        return python
    if os.environ.get("MMNEURON_NDIF_ENV"):
        raise ServiceFailed(
            f"MMNEURON_NDIF_ENV names {python.parent.parent}, which has no bin/python; unset it to make one."
        )
    folder = python.parent.parent
    if folder.is_symlink() or (folder.exists() and not (folder / "ready").is_file()):
        raise ServiceFailed(
            f"{folder} was not made by `mmneuron ndif up`, and is not replaced; remove it, or give another --state."
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    # Whose it is, before it is whole.
    write_atomically(folder / "ready", "", private=True)
    log = state / "environment.log"
    log.unlink(missing_ok=True)
    say(f"The server's environment, once, about 1.7 GB: {folder}")
    _step([sys.executable, "-m", "venv", str(folder)], log)
    for number, (name, wanted) in enumerate(STEPS, 1):
        say(f"  {number}/{len(STEPS)} {name}")
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        _step([str(python), "-m", "pip", "install", *quiet, "-c", str(CONSTRAINTS), *wanted], log)
    write_atomically(folder / "ready", _fingerprint(), private=True)
    return python


def redis_server() -> str:
    """The path of redis-server. Raises `OSError` with the cure."""
    found = shutil.which("redis-server")
    if found is None:
        raise ServiceFailed(
            "redis-server is not installed; NDIF queues its requests there. apt-get install redis-server"
        )
    return found


def _fingerprint() -> str:
    return hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()


def _step(command: list[str], log: Path) -> None:
    with open(log, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, umask=0o077
        ).returncode
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ServiceFailed(f"{' '.join(command[:4])} failed: {lines[-1] if lines else code}; all of it: {log}")
