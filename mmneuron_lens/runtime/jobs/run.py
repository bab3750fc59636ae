"""Run: a graph over many jobs on a server, each result kept as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from interventions import Graph
from interventions.errors import InvalidValue
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.compile import compile_graph, results_over
from mmneuron_lens.runtime.forms import Forms, forms_of
from mmneuron_lens.runtime.jobs.records import Records
from mmneuron_lens.runtime.jobs.server import NdifServer, Server
from mmneuron_lens.runtime.jobs.watch import Clock, Items, Limits, Takes, Watch
from mmneuron_lens.runtime.remote import folded_job, travelling
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.returned import checked_returned
from mmneuron_lens.runtime.run import job_of, needs_source, refuse_unfit
from mmneuron_lens.runtime.sample_numbers import SampleNumbers, refuse_unnumbered
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.wire.types import Key, PairedItem

BATCHES = "batches"
"""How many batches a job has, among its facts."""

Make = Callable[[], tuple[Sequence[Batch], dict[str, Any]]]
"""A job's batches, and JSON facts to keep beside its result; called only when the job is submitted."""

Kept = Callable[[str, Result, dict[str, Any]], None]
"""Keeps a job's results, as `lens.run` gives them for its batches, with its facts."""


def run_jobs(
    model: Model,
    graph: Graph,
    jobs: Mapping[str, Make],
    keep: Kept,
    *,
    remote: bool | str,
    records: Records,
    title: str = "",
    again: Sequence[str] = (),
    limits: Limits | None = None,
    clock: Clock | None = None,
    server: Server | None = None,
    takes: Takes | None = None,
    progress: Callable[[Sequence[Any], str], Any] | None = None,
) -> None:
    """Sends every job, and keeps each result as it arrives; through lost connections, restarts and this process' end.

    - jobs: by name, in the order in which they are sent; only those whose results are not there yet.
    - keep: on disk before it returns.
    - records: what an earlier process sent is asked about, and sent again only when it is known to be lost.
    - again: the command line that runs this, for `mmneuron jobs resume`.
    - takes: is told of a job that raised; if it says that it takes it, the others go on.

    Raises `JobFailed` with the message of a job that raised, `JobsUnfinished` when time runs out, and before anything
    is sent what `lens.check` raises.
    """
    checked = compile_graph(graph, model.architecture, typed=True, attention=model.attentions)
    if needs_source(checked):
        raise InvalidValue("A graph that rewires needs paired batches; run it with lens.run(..., sources=[...]).")
    plans, entry = travelling(graph, model)
    overs = results_over(graph, model.architecture)
    job = job_of(model, {}, False)
    server = server or NdifServer(model, remote, plans, entry, folded_job(job, plans))
    if jobs and not any(records.record(name).attempts for name in jobs):
        server.check()
    records.describe(title, server.host, model.nnsight.to_model_key(), list(jobs), again)

    # What must come back, known once a batch is made here.
    forms: dict[Key, Forms] = {}

    def items(name: str, make: Make) -> Items:
        def made() -> tuple[list[PairedItem], dict[str, Any]]:
            batches, facts = make()
            numbers = SampleNumbers(checked)
            for batch in batches:
                if len(jobs) > 1:
                    refuse_unnumbered(checked, batch, name)
                refuse_unfit(model, checked, batch, None, job)
                check_plans(checked, batch, model.architecture, model.module, model.dtype, False)
            if batches and not forms:
                forms.update(forms_of(checked, batches[0], model.architecture, model.module, model.dtype))
            return [{**one.travelling(numbers.of(one)), "source": None} for one in batches], {
                **facts,
                BATCHES: len(batches),
            }

        return made

    def kept(name: str, returned: dict[str, Any], facts: dict[str, Any]) -> None:
        own = dict(facts)
        checked = checked_returned(returned.get("returned"), overs, own.pop(BATCHES, None), server.host, forms)
        keep(name, Result(checked["values"], [], [], [], overs), own)

    watch = Watch(records, server, limits or Limits(), clock or Clock(), kept, takes)
    arriving = watch.gather({name: items(name, make) for name, make in jobs.items()})
    for _ in arriving if progress is None else progress(_Arriving(arriving, len(jobs)), title):
        pass


class _Arriving(Sequence[Any]):
    """Arrivals with a known length, for a progress bar; can be walked once."""

    def __init__(self, arriving: Iterator[str], count: int) -> None:
        self.arriving, self.length = arriving, count

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[str]:
        return self.arriving

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("arrivals are walked, not indexed")
