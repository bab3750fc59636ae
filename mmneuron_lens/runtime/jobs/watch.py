"""Watch: several jobs in flight, through lost connections and restarted servers, until each has its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.runtime.jobs.records import Record, Records
from mmneuron_lens.runtime.jobs.server import JobFailed, JobRaised, Lost, Server, Unreachable
from mmneuron_lens.runtime.transport import RemoteFailed
from mmneuron_lens.wire.types import PairedItem

T = TypeVar("T")
Items = Callable[[], tuple[list[PairedItem], dict[str, Any]]]
"""Makes a job's items, and the facts to keep with its result; called when the job is submitted."""

Keep = Callable[[str, dict[str, Any], dict[str, Any]], None]
"""Keeps what a job returned, by its name, with its facts; on disk before it returns."""


Takes = Callable[[str, JobRaised], bool]
"""Is told of a job, by its name, that raised on the server; whether it takes it, so that the others go on."""


class JobsUnfinished(MMNeuronError, TimeoutError):
    """Time ran out. What is done is on disk, and the same call goes on from there."""


@dataclass(frozen=True)
class Limits:
    """How long, and how often.

    - in_flight: jobs at a time.
    - seconds: for everything; None: no limit. job_seconds: without any news of a job.
    - outage_seconds: how long an unreachable server is waited for.
    - grace_seconds: how long a server that answers may not know a job before the job counts as lost.
    - attempts: how often one job is submitted. poll_seconds: between rounds.
    """

    in_flight: int = 8
    seconds: float | None = None
    job_seconds: float = 1800.0
    outage_seconds: float = 900.0
    grace_seconds: float = 30.0
    attempts: int = 5
    poll_seconds: float = 0.5

    def __post_init__(self) -> None:
        if self.in_flight < 1 or self.attempts < 1:
            raise InvalidValue(f"in_flight is {self.in_flight} and attempts {self.attempts}; both must be 1 or more.")


class Clock:
    """Seconds since some moment, and waiting; give another one to a test."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass
class _Flight:
    """A job in the air: when there was last news of it, and since when the server does not know it."""

    record: Record
    news: float
    unknown: float | None = None


class Watch:
    """Brings the jobs of one run home. Every change is on disk before the next request."""

    def __init__(
        self, records: Records, server: Server, limits: Limits, clock: Clock, keep: Keep, takes: Takes | None = None
    ) -> None:
        self.records, self.server, self.limits, self.clock, self.keep = records, server, limits, clock, keep
        self.takes = takes
        self.start = clock.now()

    def gather(self, jobs: Mapping[str, Items]) -> Iterator[str]:
        """Names of jobs as their results are kept, or `takes` takes them, in order of arrival.

        Raises `JobFailed` when a job raised or `attempts` of it were lost, `JobsUnfinished` when time ran out.
        """
        flying: dict[str, _Flight] = {}
        self._adopt(jobs, flying)
        waiting = iter([name for name in jobs if name not in flying])
        while True:
            moved = False
            self._launch(jobs, waiting, flying)
            if not flying:
                return
            for name in list(flying):
                done = self._look(jobs, flying, name)
                moved = moved or done is not None
                if done:
                    yield name
            if not moved:
                self._in_time()
                self.clock.wait(self.limits.poll_seconds)

    def _adopt(self, names: Iterable[str], flying: dict[str, _Flight]) -> None:
        """Pick up what an earlier process left in the air, on this host."""
        for name in names:
            record = self.records.record(name)
            if record.state in ("failed", "cancelled"):
                # Asked for again: a fresh start.
                self.records.write(record, state="waiting", attempts=0, error="")
            elif record.state == "submitted" and record.job and record.host == self.server.host:
                flying[name] = _Flight(record, self.clock.now())

    def _launch(self, jobs: Mapping[str, Items], waiting: Iterator[str], flying: dict[str, _Flight]) -> None:
        while len(flying) < self.limits.in_flight:
            name = next(waiting, None)
            if name is None:
                return
            flying[name] = self._submit(name, jobs[name])

    def _submit(self, name: str, make: Items) -> _Flight:
        record = self.records.record(name)
        if record.attempts >= self.limits.attempts:
            error = f"lost {record.attempts} times, the last time because {record.error or 'the server forgot it'}"
            self.records.write(record, state="failed", error=error)
            raise JobFailed(f"job {name} was {error}; look at the server's log, then run this again.")
        items, facts = make()
        try:
            job = self._through_outages(lambda: self.server.submit(items))
        except JobFailed as failed:
            self.records.write(record, state="failed", error=str(failed))
            raise
        sent = {"state": "submitted", "job": job, "host": self.server.host, "status": "RECEIVED", "facts": facts}
        return _Flight(self.records.write(record, attempts=record.attempts + 1, **sent), self.clock.now())

    def _look(self, jobs: Mapping[str, Items], flying: dict[str, _Flight], name: str) -> bool | None:
        """Ask about one job. True: its result is kept; False: there is news; None: nothing new."""
        flight = flying[name]
        assert flight.record.job is not None
        try:
            answer = self._through_outages(lambda: self.server.ask(str(flight.record.job)))
        except Lost as lost:
            return self._again(jobs, flying, name, str(lost))
        except JobFailed as failed:
            self.records.write(flight.record, state="failed", error=str(failed))
            if self.takes is not None and isinstance(failed, JobRaised) and self.takes(name, failed):
                del flying[name]
                return True
            raise JobFailed(f"{name}, job {flight.record.job}: {failed}") from failed
        if answer.returned is not None:
            try:
                self.keep(name, answer.returned, flight.record.facts)
            except RemoteFailed as failed:
                # Not a result: nothing is kept, and the job is sent again when this is run again.
                self.records.write(flight.record, state="failed", error=str(failed))
                raise
            self.records.forget(name)
            del flying[name]
            return True
        now = self.clock.now()
        if not answer.status:
            flight.unknown = now if flight.unknown is None else flight.unknown
            if now - flight.unknown > self.limits.grace_seconds:
                return self._again(jobs, flying, name, "the server does not know it any more")
            return None
        flight.unknown = None
        if answer.status != flight.record.status:
            flight.record = self.records.write(flight.record, status=answer.status)
            flight.news = now
            return False
        if now - flight.news > self.limits.job_seconds:
            return self._again(jobs, flying, name, f"{answer.status} for {self.limits.job_seconds:.0f} seconds")
        return None

    def _again(self, jobs: Mapping[str, Items], flying: dict[str, _Flight], name: str, why: str) -> bool:
        self.records.write(flying.pop(name).record, state="lost", error=why)
        flying[name] = self._submit(name, jobs[name])
        return False

    def _in_time(self) -> None:
        seconds = self.limits.seconds
        if seconds is not None and self.clock.now() - self.start > seconds:
            raise JobsUnfinished(
                f"not done after {seconds:.0f} seconds; jobs that were sent go on at {self.server.host}. "
                f"Run this again, or `mmneuron jobs resume`."
            )

    def _through_outages(self, call: Callable[[], T]) -> T:
        """The call, repeated while the server cannot be reached. Raises `JobsUnfinished` when that lasts too long."""
        began = self.clock.now()

        def too_long(state: RetryCallState) -> bool:
            self._in_time()
            return self.clock.now() - began > self.limits.outage_seconds

        retrying = Retrying(
            retry=retry_if_exception_type(Unreachable),
            wait=wait_exponential_jitter(
                multiplier=self.limits.poll_seconds, max=15.0, jitter=self.limits.poll_seconds
            ),
            stop=too_long,
            sleep=self.clock.wait,
            reraise=True,
        )
        try:
            return retrying(call)
        except Unreachable as error:
            raise JobsUnfinished(
                f"{self.server.host} was unreachable for {self.limits.outage_seconds:.0f} seconds ({error}). "
                f"Run this again when it is back, or `mmneuron jobs resume`."
            ) from error
