"""Server: a job sent to NDIF without waiting, asked about from any process, and its troubles told apart."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.backend import backend_of
from mmneuron_lens.runtime.host import host_of
from mmneuron_lens.runtime.serving import is_servers_trouble, last_line, refuse_unserved
from mmneuron_lens.wire.types import FoldedJob, PairedItem, SitePlan


class Unreachable(Exception):
    """No usable answer this time: a refused or dropped connection, a 5xx. Says nothing about any job."""


class Lost(Exception):
    """The server says that this job will never end well, for reasons that are not the job's."""


class JobFailed(MMNeuronError, RuntimeError):
    """The job raised on the server, or the server refuses it: submitting it again would end the same."""


class JobRaised(JobFailed):
    """The job's own code raised on the server, for instance on what it was given."""


@dataclass(frozen=True)
class JobStatus:
    """status: "" when the server does not know the job. returned: what it sent back, by name, once it is complete."""

    status: str
    returned: dict[str, Any] | None = None


class Server(Protocol):
    """What the watch needs. Both raise `Unreachable`; `ask` also `Lost` and `JobFailed`, `submit` also `JobFailed`."""

    host: str

    def check(self) -> None: ...

    def submit(self, items: list[PairedItem]) -> str: ...

    def ask(self, job: str) -> JobStatus: ...


class NdifServer:
    """One model on one NDIF host. The API key comes from nnsight's configuration and stays in its headers."""

    def __init__(self, model: Model, remote: bool | str, plans: list[SitePlan], entry: Any, job: FoldedJob):
        if remote == "local" or not remote:
            raise InvalidValue(f"jobs need a server: remote is {remote!r}; give True or a URL, or leave out `jobs`.")
        self.model, self.remote, self.plans, self.entry, self.job = model, remote, plans, entry, job
        self.host = str(self._backend().host)

    def _backend(self, job_id: str | None = None) -> Any:
        return _quiet(backend_of(self.model, self.remote, blocking=False, job_id=job_id))

    def check(self) -> None:
        """Refuse before the first job what cannot work; raises as `runtime.serving.refuse_unserved`."""
        refuse_unserved(host_of(self.remote), self.model.nnsight.to_model_key())

    def submit(self, items: list[PairedItem]) -> str:
        """Send a job of these items and return its id at once."""
        backend, model = self._backend(), self.model.nnsight
        entry, plans, job = self.entry, self.plans, self.job
        with translated(), model.session(backend=backend):
            returned = entry(model, plans, items, job).save()  # noqa: F841  (it comes back under this name)
        return str(backend.job_id)

    def ask(self, job: str) -> JobStatus:
        """What the server knows about a job, and its result when it is complete."""
        return asked(self._backend(job))


def ask_host(host: str, job: str) -> JobStatus:
    """What a host knows about a job, without its model: the key is not needed for asking."""
    anyone: Any = SimpleNamespace(nnsight=SimpleNamespace(to_model_key=lambda: ""))
    return asked(_quiet(backend_of(anyone, host, blocking=False, job_id=job)))


def _quiet(backend: Any) -> Any:
    """Several jobs at a time would overwrite each other's status lines."""
    backend.display.enabled = False
    return backend


def asked(backend: Any) -> JobStatus:
    """Poll once with a backend that carries a job's id."""
    with translated(backend):
        result = backend.poll()
    if result is not None:
        return JobStatus("COMPLETED", result)
    return JobStatus("" if backend.status is None else backend.status.value)


class translated:
    """Turns what a backend raises into `Unreachable`, `Lost` or `JobFailed`."""

    def __init__(self, backend: Any = None) -> None:
        self.backend = backend

    def __enter__(self) -> translated:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        import httpx
        from nnsight.intervention.backends.remote import RemoteError
        from pydantic import ValidationError

        cause = (error.__cause__ or error) if isinstance(error, RemoteError) else error
        if isinstance(cause, httpx.HTTPStatusError):
            raise self._of_status(error, cause.response.status_code) from error
        if isinstance(cause, httpx.HTTPError | OSError | ValidationError):
            raise Unreachable(one_line(cause)) from error
        if isinstance(error, RemoteError):
            whole, short = getattr(error, "traceback", str(error)), " ".join(str(error).split())
            if is_servers_trouble(whole):
                raise Lost(last_line(whole)) from error
            raise (JobRaised if "Traceback" in whole else JobFailed)(short) from error

    def _of_status(self, error: Exception, code: int) -> Exception:
        if code >= 500 or code == 429:
            return Unreachable(one_line(error))
        # The job is complete, but its result is not where the server says: it went with the store.
        if self.backend is not None and getattr(self.backend.status, "value", "") == "COMPLETED":
            return Lost(f"its result is gone ({code})")
        return JobFailed(f"the server refuses the job ({code}): {last_line(str(error))}")


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
