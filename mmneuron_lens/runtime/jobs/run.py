"""Run: a graph over shards on a server, each shard once, into a folder that remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interventions import Graph
from interventions.errors import InvalidType, InvalidValue
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.compile import compile_graph, results_over
from mmneuron_lens.runtime.jobs.identity import digest
from mmneuron_lens.runtime.jobs.server import NdifServer, Server
from mmneuron_lens.runtime.jobs.store import JobStore, default_folder
from mmneuron_lens.runtime.jobs.watch import Clock, Limits, Watch
from mmneuron_lens.runtime.remote import travelling
from mmneuron_lens.runtime.run import job_of, needs_source
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.wire import fold


@dataclass(frozen=True)
class Shard:
    """A part of a corpus. content: what is in it, as plain values; with model and graph it decides the shard's key.

    make: its batches, and JSON facts to keep beside the result; called only when the shard is submitted.
    """

    content: Any
    make: Callable[[], tuple[Sequence[Batch], dict[str, Any]]]


def run_shards(
    model: Model,
    graph: Graph,
    shards: Sequence[Shard],
    *,
    remote: bool | str,
    jobs: str | Path | None = None,
    title: str = "",
    again: Sequence[str] = (),
    limits: Limits | None = None,
    clock: Clock | None = None,
    server: Server | None = None,
    progress: Callable[[Sequence[Any], str], Any] | None = None,
    **generation: Any,
) -> list[tuple[dict[tuple[str, str], Any], dict[str, Any]]]:
    """Per shard, in order, what `lens.run` gives for its batches (results by (name, site)) and the facts of `make`.

    Every shard is a job; a shard whose result is in the folder is not sent again, whoever computed it. jobs: the folder
    that holds one folder per run (by default `default_folder()`). again: the command line that runs this, for
    `mmneuron jobs resume`. Raises `JobFailed` with the message of a job that raised, `JobsUnfinished` when time runs
    out, `JobsBusy` when another process is at these jobs, and before anything is sent what `lens.check` raises.
    """
    graph = graph if isinstance(graph, Graph) else Graph((graph,))
    checked = compile_graph(graph, model.architecture, typed=True, attention=model.attention)
    if needs_source(checked):
        raise InvalidValue("A graph that rewires needs paired batches; run it with lens.run(..., sources=[...]).")
    plans, entry = travelling(graph, model)
    overs = results_over(graph, model.architecture)
    job = {**job_of(model, generation, False), "overs": overs}
    server = server or NdifServer(model, remote, plans, entry, job)
    identity = digest(model.nnsight.to_model_key(), plans, entry, job)
    keys = [digest(identity, shard.content) for shard in shards]
    if len(set(keys)) != len(keys):
        raise InvalidValue("two shards have the same content and would count twice; give each shard its own samples.")
    store = JobStore(Path(jobs or default_folder()) / digest(keys)[:16])
    with store.alone():
        served_as = model.nnsight.to_model_key()
        if not any(store.record(key).attempts or store.is_done(key) for key in keys):
            server.check()
        store.describe(title=title, host=server.host, model=served_as, shards=keys, again=list(again))
        items = {key: _items(model, checked, shard) for key, shard in zip(keys, shards, strict=True)}
        arriving = Watch(store, server, limits or Limits(), clock or Clock()).gather(items)
        for _ in arriving if progress is None else progress(_Arriving(arriving, len(keys)), title):
            pass
        found = [store.result(key) for key in keys]
    return [(fold.finish(returned["values"], overs), facts) for returned, facts in found]


def _items(model: Model, plans: list[Any], shard: Shard) -> Callable[[], tuple[list[dict[str, Any]], dict[str, Any]]]:
    def make() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        batches, facts = shard.make()
        for batch in batches:
            check_plans(plans, batch, model.architecture, model.module, model.dtype)
        return [{**batch.travelling(), "source": None} for batch in batches], facts

    return make


class _Arriving(Sequence[Any]):
    """Arrivals with a known length, for a progress bar; can be walked once."""

    def __init__(self, arriving: Iterator[str], count: int) -> None:
        self.arriving, self.length = arriving, count

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[str]:
        return self.arriving

    def __getitem__(self, index: Any) -> Any:
        raise InvalidType("arrivals are walked, not indexed")
