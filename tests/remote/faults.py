"""Faults of a live server: what `mmneuron ndif up` started is killed, one service at a time, and brought back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from interventions import Graph, keep
from mmneuron_lens import Lens
from mmneuron_lens.batching.gather import WHOLE, Memory
from mmneuron_lens.batching.remote import chunks_of
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.count import count_domain, plan_count
from mmneuron_lens.ndif import services
from mmneuron_lens.ndif.environment import redis_server
from mmneuron_lens.ndif.health import is_connected
from mmneuron_lens.ndif.ownership import own
from mmneuron_lens.ndif.state import State
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.jobs import server as jobs_server
from mmneuron_lens.runtime.jobs.records import Records
from mmneuron_lens.runtime.jobs.run import run_jobs
from mmneuron_lens.runtime.jobs.server import JobFailed
from mmneuron_lens.runtime.jobs.watch import Limits

LIMITS = Limits(
    in_flight=4,
    poll_seconds=0.2,
    grace_seconds=10.0,
    job_seconds=45.0,
    outage_seconds=200.0,
    attempts=10,
    seconds=240.0,
)


class Live:
    """A running server of ours, by its state folder, and its model."""

    def __init__(self, state: State, url: str, python: Path) -> None:
        self.state, self.url, self.python = state, url, python
        self.repo = state.known().models[0][1]

    def kill(self, name: str) -> Callable[[], None]:
        """Kill a service and everything in its session; returns what starts it again as it was."""
        server = self.state.known()
        leader, _ = server.services[name]
        surroundings = services.environment_of(self.state, self.python, server)
        surroundings["NDIF_SERVICE"] = "api" if name == "api" else "ray"
        # Until it is gone, the old one still answers at the port where the new one is awaited.
        kill([process for process in own(server) if os.getsid(process.pid) == leader])

        def revive() -> None:
            services._service(self.state, name, self.command(name), surroundings)
            if name == "ray":
                self.redeploy(surroundings)
            if name == "store":
                # A store in memory comes back empty, and ndif 0.1.2 makes its bucket once in a process.
                services._until_open(self.state, "store")
                httpx.put(f"http://127.0.0.1:{server.ports['store']}/ndif-results").raise_for_status()
                # Its queue, too, ends for good when a status cannot be written.
                self.kill("api")()
            if name == "redis":
                # ndif 0.1.2 notes in redis, once, that ray is connected; without that it answers 503 for ever.
                self.kill("api")()

        return revive

    def command(self, name: str) -> list[Any]:
        """How `mmneuron ndif up` starts a service; some change the words that /proc shows."""
        server, scripts = self.state.known(), self.python.parent
        ports = server.ports
        return {
            "redis": [redis_server(), "--port", ports["redis"], "--bind", "127.0.0.1", "--save", ""],
            "store": [scripts / "moto_server", "-H", "127.0.0.1", "-p", ports["store"]],
            "ray": [scripts / "ray", *services.ray_options(server)],
            "api": [scripts / "gunicorn", *services.API],
        }[name]

    def redeploy(self, surroundings: dict[str, str]) -> None:
        server = self.state.known()
        services._until_open(self.state, "ray")
        address = {"RAY_ADDRESS": f"127.0.0.1:{server.ports['ray']}", "NDIF_SERVICE": "ray"}
        module = "ndif.services.ray.deployments.controller.controller"
        services._finish(self.state, "controller", [self.python, "-m", module], surroundings | address)
        services._until(self.state, "api", lambda: is_connected(self.url))
        self.state.save(replace(server, models=[]))
        services.serve(self.state, self.python, server.models, lambda text: None)

    def restart(self) -> None:
        """All of it from the start, at the same port."""
        server = self.state.known()
        services.end(self.state)
        settings = {name: getattr(server, name) for name in ("cpu", "sandbox", "dtype", "threads", "offline")}
        services.start(self.state, self.python, port=server.ports["api"], say=print, **settings)
        services.serve(self.state, self.python, server.models, print)

    def kill_actors(self) -> None:
        """Kill every process that holds a model; ray starts it again."""
        kill(self.named("ray::CpuModel", "ray::_CpuModel", "ray::ModelActor"))

    def kill_controller(self) -> None:
        """What ray's out-of-memory killer does: ray starts the controller again, which then knows no model."""
        kill(self.named("ray::ControllerActor"))

    def named(self, *titles: str) -> list[psutil.Process]:
        """The server's processes whose first word in /proc starts with one of these."""
        return [one for one in own(self.state.known()) if (one.cmdline() or [""])[0].startswith(titles)]


def kill(some: list[psutil.Process], patience: float = 10.0) -> None:
    """Kill processes, and wait until they are gone. Raises `TimeoutError`."""
    for one in some:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    _, left = psutil.wait_procs(some, timeout=patience)
    if left:
        raise TimeoutError(f"{[one.pid for one in left]} still live {patience:.0f} seconds after SIGKILL.")


def undisturbed(live: Live, corpus: Path) -> Any:
    samples, _ = read_folder(corpus)
    return count_domain(Lens(live.repo), samples, batch_size=2)


def counted(live: Live, corpus: Path, run: Path, strike: Callable[[], Any] | None = None) -> Any:
    """The counts through the server; `strike` is called when the first result has arrived, others being in flight."""

    def progress(arriving: Any, title: str) -> Any:
        for number, key in enumerate(arriving):
            if number == 0 and strike is not None:
                strike()
            yield key

    samples, _ = read_folder(corpus)
    lens = Lens(live.repo, remote=live.url)
    settings = {"batch_size": 2, "jobs": {"limits": LIMITS}, "progress": progress}
    return count_stage(lens, {"common": samples}, Store(run), **settings)["common"]


def pieces_of(live: Live, corpus: Path) -> int:
    """How many jobs a count takes where nothing is lost."""
    samples, _ = read_folder(corpus)
    return len(chunks_of(plan_count(Lens.weightless(live.repo), samples, batch_size=2).steps, WHOLE, Memory()))


@contextmanager
def jobs_sent() -> Iterator[list[str]]:
    """The ids of the jobs that this process sends."""
    sent: list[str] = []
    genuine = jobs_server.NdifServer.submit

    def submit(self: Any, items: Any) -> str:
        sent.append(genuine(self, items))
        return sent[-1]

    jobs_server.NdifServer.submit = submit
    try:
        yield sent
    finally:
        jobs_server.NdifServer.submit = genuine


def equal(one: Any, other: Any) -> bool:
    return one.samples == other.samples and all(
        torch.equal(one.active[site], other.active[site]) and torch.equal(one.tokens[site], other.tokens[site])
        for site in one.active.keys() | other.active.keys()
    )


def service_killed(name: str) -> Callable[[Live, Path, Path], Any]:
    def run(live: Live, corpus: Path, run: Path) -> Any:
        troubles: list[BaseException] = []
        revived: list[threading.Thread] = []

        def strike() -> None:
            revive = live.kill(name)

            def back() -> None:
                try:
                    revive()
                except BaseException as error:
                    troubles.append(error)

            revived.append(threading.Thread(target=back))
            revived[0].start()

        try:
            return counted(live, corpus, run, strike)
        finally:
            for thread in revived:
                thread.join()
            if troubles:
                raise AssertionError(f"{name} was not brought back") from troubles[0]

    return run


def actor_killed(live: Live, corpus: Path, run: Path) -> Any:
    return counted(live, corpus, run, live.kill_actors)


CLIENT = """
import sys, os, signal
sys.path[:0] = {paths!r}
import mmneuron_lens
from pathlib import Path
from faults import Live, counted
from mmneuron_lens.ndif.state import State
live = Live(State(Path({state!r})), {url!r}, Path({python!r}))
counted(live, Path({corpus!r}), Path({run!r}), lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def client_killed(live: Live, corpus: Path, run: Path) -> Any:
    facts = {"state": str(live.state.folder), "url": live.url, "python": str(live.python)}
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = CLIENT.format(paths=paths, corpus=str(corpus), run=str(run), **facts)
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode
    assert ended == -signal.SIGKILL, ended
    return counted(live, corpus, run)


def returned(live: Live, lens: Lens, graph: Graph, batches: list[Any], folder: Path) -> Any:
    """What one job comes to, by name and site."""
    kept: list[Any] = []
    run_jobs(
        lens.model, graph, {"one": lambda: (batches, {})}, lambda name, values, facts: kept.append(values),
        remote=live.url, records=Records(folder), limits=LIMITS,
    )  # fmt: skip
    return kept[0]


def job_raises(live: Live, corpus: Path, run: Path) -> Any:
    from failing_there import fails_there

    lens = Lens.weightless(live.repo)
    samples, _ = read_folder(corpus)
    batch = lens.encode([samples[0].images[0]], ["why"])
    with pytest.raises(JobFailed, match="no such neuron"):
        returned(live, lens, Graph((fails_there,)), [batch], run / "raising")
    return counted(live, corpus, run)


def large_result(live: Live, corpus: Path, run: Path) -> Any:
    lens, here = Lens.weightless(live.repo), Lens(live.repo)
    samples, _ = read_folder(corpus)
    batch = lens.encode([samples[0].images[0]] * 8, ["why"] * 8)
    graph = Graph((keep.at("llm.mlp.act"),))
    values = returned(live, lens, graph, [batch] * 8, run / "large")
    expected = here.run(graph, [batch] * 8)["keep", "llm.mlp.act"]
    assert sum(part.numel() * part.element_size() for part in values["keep", "llm.mlp.act"]) > 8 * 2**20
    assert all(torch.equal(one, two) for one, two in zip(values["keep", "llm.mlp.act"], expected, strict=True))
    return counted(live, corpus, run)


FAULTS: dict[str, Callable[[Live, Path, Path], Any]] = {
    "API killed": service_killed("api"),
    "redis killed": service_killed("redis"),
    "store killed": service_killed("store"),
    "model actor killed": actor_killed,
    "ray killed": service_killed("ray"),
    "client killed": client_killed,
    "job raises": job_raises,
    "result over 8 MiB": large_result,
}
