"""State: the folder that remembers what was started: ports, models, services and logs. No other user can read it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from interventions.errors import InvalidValue, ServiceFailed, StorageFailed
from interventions.files import storage_errors, write_atomically

SERVICES = ("redis", "store", "ray", "api")
PORTS = ("redis", "store", "ray", "client", "dashboard", "grpc", "metrics", "agent", "api")
DTYPES = ("float32", "bfloat16", "float16")


def default_folder() -> Path:
    """`$MMNEURON_NDIF_STATE`, or `mmneuron/ndif` in the user's cache folder."""
    given = os.environ.get("MMNEURON_NDIF_STATE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "mmneuron" / "ndif"


@dataclass(frozen=True)
class OwnServer:
    """server.json: a server as it was started.

    - folder: the state folder; a copy of the file in another folder is not that folder's.
    - token: 16 hexadecimal digits, new at each start; with the folder it marks every process of the server.
    - ports: by name, all of `PORTS`. models: `(name, folder or hub id)`.
    - threads: of each model on a processor, 0 on GPUs. offline: nothing is asked of the hub.
    - services: by name, process id and start, in seconds since boot.
    """

    folder: str
    token: str
    ports: dict[str, int]
    cpu: bool
    sandbox: bool
    dtype: str
    threads: int
    offline: bool
    models: list[tuple[str, str]] = field(default_factory=list)
    services: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """What every process of this server has in its environment, and no process of another."""
        return f"{self.token} {self.folder}"

    @property
    def temporary(self) -> Path:
        """Ray's folder. Its sockets allow no long path, so it does not lie in the state folder."""
        return Path("/tmp") / f"mmray-{self.token}"


class State:
    """Files in a folder: `server.json`, `NAME.log` a service, and the environment."""

    def __init__(self, folder: Path) -> None:
        try:
            self.folder = folder.resolve()
        except (OSError, RuntimeError) as error:
            raise InvalidValue(f"{folder} leads nowhere ({error}); give another folder: --state FOLDER") from None

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def new_log(self, name: str) -> BinaryIO:
        """An empty log that only this user can read."""
        self.log(name).unlink(missing_ok=True)
        return open(os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def refuse_foreign(self) -> None:
        """Raise `InvalidValue` when the folder is a file, or another user's."""
        try:
            found = self.folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise InvalidValue(f"{self.folder}: {error.strerror}; give a folder of your own: --state FOLDER") from None
        if not stat.S_ISDIR(found.st_mode):
            raise InvalidValue(f"{self.folder} is a file; give a folder: --state FOLDER")
        if found.st_uid != os.geteuid():
            raise InvalidValue(
                f"{self.folder} belongs to another user (uid {found.st_uid}); give a folder of your own: --state FOLDER"
            )

    def claim(self) -> None:
        """Make the folder, or close one of our own to other users. Raises `InvalidValue` for any other folder."""
        self.refuse_foreign()
        with storage_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.folder.stat().st_mode & 0o077:
            return
        is_ours = self.server() is not None or (self.folder / "environment" / "ready").is_file()
        if not is_ours and any(self.folder.iterdir()):
            raise InvalidValue(
                f"{self.folder} holds other files and is open to other users; give a new folder: --state FOLDER"
            )
        self.folder.chmod(0o700)

    @contextmanager
    def locked(self) -> Generator[None]:
        """One command at a time. The system takes the lock from a process that ends. Raises `ServiceFailed`."""
        lock = FileLock(self.folder / "lock", mode=0o600)
        try:
            with storage_errors(self.folder / "lock"):
                lock.acquire(timeout=0)
        except StorageFailed as error:
            if not isinstance(error.__cause__, Timeout):
                raise
            raise ServiceFailed(
                f"Another `mmneuron ndif` works in {self.folder}; wait until it ends, or give another --state."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def server(self) -> OwnServer | None:
        """The last start, None when there is none.

        Raises `InvalidValue`, one line, when the file is not what `save` wrote here.
        """
        path = self.folder / "server.json"
        try:
            return _server(json.loads(path.read_text(encoding="utf-8")), self.folder)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidValue(
                f"{path} is not what `mmneuron ndif up` wrote here ({' '.join(str(error).split())}). Nothing was ended "
                "or deleted: end that server's processes by hand if any are left, and remove the file."
            ) from None

    def known(self) -> OwnServer:
        """The last start. Raises `ServiceFailed` when there is none."""
        server = self.server()
        if server is None:
            raise ServiceFailed(f"{self.folder} knows no server; start one: mmneuron ndif up --model FOLDER")
        return server

    def save(self, server: OwnServer) -> None:
        write_atomically(self.folder / "server.json", json.dumps(asdict(server), indent=1) + "\n", private=True)

    def forget(self) -> None:
        (self.folder / "server.json").unlink(missing_ok=True)


def new_token() -> str:
    return secrets.token_hex(8)


def make_temporary(server: OwnServer) -> None:
    """Make ray's folder, with a file that says whose it is."""
    server.temporary.mkdir(mode=0o700)
    write_atomically(server.temporary / "owner", server.mark, private=True)


def remove_temporary(server: OwnServer) -> None:
    """Remove ray's folder, if it is the one that was made for this server."""
    folder = server.temporary
    try:
        is_ours = not folder.is_symlink() and (folder / "owner").read_text(encoding="utf-8") == server.mark
    except (OSError, ValueError):
        return
    if is_ours:
        shutil.rmtree(folder, ignore_errors=True)


def _server(read: Any, folder: Path) -> OwnServer:
    """What was read, every field of its type. Raises `ValueError` that names the first which is not."""
    if not isinstance(read, dict) or set(read) != {one.name for one in fields(OwnServer)}:
        raise ValueError(f"it does not have exactly {', '.join(one.name for one in fields(OwnServer))}")
    fitting = {
        "folder": read["folder"] == str(folder),
        "token": _is_token(read["token"]),
        "ports": _is_ports(read["ports"]),
        "dtype": read["dtype"] in DTYPES,
        "threads": _is_number(read["threads"]),
        "models": _is_pairs(read["models"], str, str),
        "services": isinstance(read["services"], dict)
        and set(read["services"]) <= set(SERVICES)
        and _is_pairs(list(read["services"].values()), int, float),
        **{name: isinstance(read[name], bool) for name in ("cpu", "sandbox", "offline")},
    }
    for name, fits in fitting.items():
        if not fits:
            raise ValueError(f"{name} is {json.dumps(read[name])[:80]}")
    pairs = {name: (pid, started) for name, (pid, started) in read["services"].items()}
    return OwnServer(**{**read, "models": [(name, repo) for name, repo in read["models"]], "services": pairs})


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16 and set(value) <= set("0123456789abcdef")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_ports(value: Any) -> bool:
    is_whole = isinstance(value, dict) and set(value) == set(PORTS)
    return is_whole and all(_is_number(port) and 1024 <= port <= 65535 for port in value.values())


def _is_pairs(value: Any, first: type, second: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is first and type(pair[1]) is second
        for pair in value
    )
