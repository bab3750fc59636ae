"""Backend: how nnsight's jobs reach a server and come back: over plain requests, as tensors and values alone.

nnsight's own way listens on a websocket and unpickles what arrives there; a job that is sent and asked about needs
neither.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from mmneuron_lens.model import Model
from mmneuron_lens.runtime import transport
from mmneuron_lens.runtime.container import Refused, read
from mmneuron_lens.runtime.host import host_of
from mmneuron_lens.runtime.serving import explained
from mmneuron_lens.runtime.shipping import refuse_unshippable
from mmneuron_lens.runtime.transport import RemoteFailed

FIRST, SLOWEST = 0.02, 0.5
"""Seconds between two questions about a job: the first, and the most."""

FORGOTTEN = 60.0
"""Seconds after which a job that the server does not know is lost."""


def backend_of(
    model: Model,
    remote: bool | str,
    *,
    wait: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Any:
    """The nnsight backend of a host, whose payloads are inspected and whose answers are bounded and checked.

    - remote: as in `lens.run`; "local" is nnsight's dry run of the remote path
    - wait, now: a clock of a test
    - settings: `blocking` and `job_id` of nnsight's `RemoteBackend`
    """
    if remote == "local":
        return model.nnsight._remote_backend("local", True, None, False)
    from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
    from nnsight.schema.request import RequestModel
    from nnsight.schema.response import ResponseModel

    host = host_of(remote)
    stores = transport.stores_named(os.environ)

    class Backend(RemoteBackend):
        asked = host
        known = False
        """Whether the server knew the job when it was last asked."""
        found: Any = None
        """What the last job sent back, by name."""

        def __call__(self, tracer: Any = None) -> Any:
            if not self.blocking:
                return super().__call__(tracer)
            self.submit(tracer)
            pause, unknown = FIRST, now()
            while (found := self.poll()) is None:
                unknown = now() if self.known else unknown
                if now() - unknown > FORGOTTEN:
                    raise RemoteFailed(f"{self.host} does not know job {self.job_id} any more; run this again.")
                wait(pause)
                self.display.refresh()
                pause = min(SLOWEST, 1.5 * pause)
            self._push(found, tracer)
            return found

        def _serialize(self, tracer: Any) -> bytes:
            refuse_unshippable(RequestModel.serialize(tracer, compress=False))
            return super()._serialize(tracer)

        def _post(self, request: Any, blob: bytes) -> Any:
            headers = {"nnsight-version": version("nnsight"), "python-version": sys.version}
            said = transport.page(
                host, "/request", seconds=transport.SILENCE, headers={**headers, "ndif-timestamp": repr(time.time())},
                data={"data": request.metadata()}, files={"blob": ("request", blob, "application/octet-stream")},
            )  # fmt: skip
            return ResponseModel.model_validate(said)

        def poll(self, tracer: Any = None) -> Any:
            said = transport.page(host, f"/response/{self.job_id}", absent=404)
            self.known = said is not None
            if said is None:
                return None
            response = ResponseModel.model_validate(said)
            self.status = response.status
            return self.handle(response)

        def handle(self, response: Any) -> Any:
            try:
                return super().handle(response)
            except RemoteError as error:
                short = RemoteError(explained(str(error), self.host))
                # For whom the short form is not enough.
                short.traceback = str(error)  # type: ignore[attr-defined]
                raise short from None

        def download_result(self, url: Any) -> Any:
            return self.finalize(transport.result_bytes(host, url, stores))

        def finalize(self, content: bytes) -> Any:
            whole = transport.unpacked(host, content) if self.compress else content
            try:
                found = read(whole)
            except Refused as error:
                raise RemoteFailed(
                    f"{self.host}: the answer is not plain tensors and values ({error}); it is not read.", str(error)
                ) from error
            if not isinstance(found, dict):
                raise RemoteFailed(f"{self.host}: the answer is {type(found).__name__}, not results by name.")
            self.found = found
            return found

        @staticmethod
        def parse(message: str | bytes) -> Any:
            raise RemoteFailed("answers on a websocket are not read.")

    made = Backend(model.nnsight.to_model_key(), host=host.url, **settings)
    # nnsight falls back on the configured key, whatever the host.
    made.api_key = host.key
    return made
