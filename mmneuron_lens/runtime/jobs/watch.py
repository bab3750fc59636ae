"""Watch: several jobs in flight, through lost connections and restarted servers, until every shard has its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.runtime.jobs.server import JobFailed, Lost, Server, Unreachable
from mmneuron_lens.runtime.jobs.store import JobStore, Record

T = TypeVar("T")
Items = Callable[[], tuple[list[dict[str, Any]], dict[str, Any]]]
"""Makes a shard's items, and the facts to keep with its result; called when the shard is submitted."""


class JobsUnfinished(MMNeuronError, TimeoutError):
    """Time ran out. What is done is on disk, and the same call goes on from there."""


@dataclass(frozen=True)
class Limits:
    """in_flight: jobs at a time. seconds: for everything; None: no limit. job_seconds: without any news of a job.
    outage_seconds: how long an unreachable server is waited for. grace_seconds: how long a server that answers may
    not know a job before the job counts as lost. attempts: jobs submitted for one shard. poll_seconds: between rounds.
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
    facts: dict[str, Any]
    news: float
    unknown: float | None = None


class Watch:
    """Brings the shards of one store home. Every change is on disk before the next request."""

    def __init__(self, store: JobStore, server: Server, limits: Limits, clock: Clock) -> None:
        self.store, self.server, self.limits, self.clock = store, server, limits, clock
        self.start = clock.now()

    def gather(self, shards: Mapping[str, Items]) -> Iterator[str]:
        """Keys as their results are on disk: first those that were there, then in order of arrival.

        Raises `JobFailed` when a shard's job raised or `attempts` jobs were lost, `JobsUnfinished` when time ran out.
        """
        missing = [key for key in shards if not self.store.is_done(key)]
        yield from (key for key in shards if self.store.is_done(key))
        waiting, flying = iter(missing), {}
        self._adopt(missing, flying)
        while True:
            moved = False
            self._launch(shards, waiting, flying)
            if not flying:
                return
            for key in list(flying):
                done = self._look(shards, flying, key)
                moved = moved or done is not None
                if done:
                    yield key
            if not moved:
                self._in_time()
                self.clock.wait(self.limits.poll_seconds)

    def _adopt(self, keys: Iterable[str], flying: dict[str, _Flight]) -> None:
        """Pick up what an earlier process left in the air, on this host."""
        for key in keys:
            record = self.store.record(key)
            if record.state in ("failed", "cancelled"):
                # Asked for again: a fresh start.
                self.store.write(record, state="waiting", attempts=0, error="")
            elif record.state == "submitted" and record.job and record.host == self.server.host:
                flying[key] = _Flight(record, self.store.facts(key), self.clock.now())

    def _launch(self, shards: Mapping[str, Items], waiting: Iterator[str], flying: dict[str, _Flight]) -> None:
        while len(flying) < self.limits.in_flight:
            key = next((key for key in waiting if key not in flying and not self.store.is_done(key)), None)
            if key is None:
                return
            flying[key] = self._submit(key, shards[key])

    def _submit(self, key: str, make: Items) -> _Flight:
        record = self.store.record(key)
        if record.attempts >= self.limits.attempts:
            error = f"lost {record.attempts} times, the last time because {record.error or 'the server forgot it'}"
            self.store.write(record, state="failed", error=error)
            raise JobFailed(f"shard {key[:12]} was {error}; look at the server's log, then run this again.")
        items, facts = make()
        self.store.keep_facts(key, facts)
        try:
            job = self._through_outages(lambda: self.server.submit(items))
        except JobFailed as failed:
            self.store.write(record, state="failed", error=str(failed))
            raise
        record = self.store.write(
            record, state="submitted", job=job, host=self.server.host, attempts=record.attempts + 1, status="RECEIVED"
        )
        return _Flight(record, facts, self.clock.now())

    def _look(self, shards: Mapping[str, Items], flying: dict[str, _Flight], key: str) -> bool | None:
        """Ask about one job. True: its result is on disk; False: there is news; None: nothing new."""
        flight = flying[key]
        assert flight.record.job is not None
        try:
            answer = self._through_outages(lambda: self.server.ask(str(flight.record.job)))
        except Lost as lost:
            return self._again(shards, flying, key, str(lost))
        except JobFailed as failed:
            self.store.write(flight.record, state="failed", error=str(failed))
            raise JobFailed(f"shard {key[:12]}, job {flight.record.job}: {failed}") from failed
        if answer.returned is not None:
            self.store.keep(key, answer.returned, flight.facts)
            del flying[key]
            return True
        now = self.clock.now()
        if not answer.status:
            flight.unknown = now if flight.unknown is None else flight.unknown
            if now - flight.unknown > self.limits.grace_seconds:
                return self._again(shards, flying, key, "the server does not know it any more")
            return None
        flight.unknown = None
        if answer.status != flight.record.status:
            flight.record = self.store.write(flight.record, status=answer.status)
            flight.news = now
            return False
        if now - flight.news > self.limits.job_seconds:
            return self._again(shards, flying, key, f"{answer.status} for {self.limits.job_seconds:.0f} seconds")
        return None

    def _again(self, shards: Mapping[str, Items], flying: dict[str, _Flight], key: str, why: str) -> bool:
        self.store.write(flying.pop(key).record, state="lost", error=why)
        flying[key] = self._submit(key, shards[key])
        return False

    def _in_time(self) -> None:
        seconds = self.limits.seconds
        if seconds is not None and self.clock.now() - self.start > seconds:
            raise JobsUnfinished(
                f"not done after {seconds:.0f} seconds; jobs that were sent go on at {self.server.host}. "
                f"Run this again, or `mmneuron jobs resume {self.store.folder}`."
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
                f"Run this again when it is back, or `mmneuron jobs resume {self.store.folder}`."
            ) from error
