"""Runs `lens.run(remote=...)` against strict_server.py: the bytes of the remote backend, ndif's own execution."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from nnsight.intervention.backends.remote import RemoteError

from mmneuron_lens.ndif.environment import is_ready, server_python
from mmneuron_lens.ndif.state import default_folder
from mmneuron_lens.runtime import remote

URL = "https://strict"
NO_ENVIRONMENT = (
    "no NDIF server environment: set MMNEURON_NDIF_ENV to one, or make it with `mmneuron ndif up --model ... --cpu`"
)


def environment_is_there() -> bool:
    return is_ready(default_folder())


class StrictServer:
    """A second process without our packages, holding a model per folder, or per name in `newer_models.py`."""

    def __init__(self, folders: Sequence[Path | str], scratch: Path) -> None:
        self.folders = [one if isinstance(one, str) else str(one.resolve()) for one in folders]
        self.payload, self.result, self.log = scratch / "payload", scratch / "result", scratch / "log"
        self.sent: list[int] = []
        self.received: list[int] = []
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [server_python(default_folder()), Path(__file__).parent / "strict_server.py", *self.folders],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Its own site-packages only, and not a name of this checkout.
                cwd=scratch,
                env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "HF_HUB_OFFLINE": "1"},
            )
        assert self._line() == "ready", self.log.read_text()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, folder: str, payload: bytes) -> dict:
        self.payload.write_bytes(payload)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.folders.index(folder)} {self.payload} {self.result}\n")
        self.process.stdin.flush()
        answer = self._line()
        if answer != "ok":
            raise RemoteError(answer or self.log.read_text())
        self.sent.append(len(payload))
        self.received.append(self.result.stat().st_size)
        return torch.load(self.result, weights_only=True)

    def close(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0, self.log.read_text()

    def attach(self, monkeypatch) -> None:
        """From here on, `remote=URL` is answered by this process."""
        genuine = remote.backend_of

        def backend_of(model, where, **settings):
            made = genuine(model, where, **settings)
            server = self

            class Strict(type(made)):
                def __call__(self, tracer=None):
                    result = server.run(model.nnsight.repo_id, self._serialize(tracer))
                    self.found = result
                    self._push(result, tracer)
                    return result

            made.__class__ = Strict
            made.compress = False
            return made

        monkeypatch.setattr(remote, "backend_of", backend_of)
        monkeypatch.setattr(remote, "refuse_unserved", lambda host, key: None)
