"""Remote gathering: steps of work as jobs on a server, a few batches each; the same pieces as here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interventions import Graph
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.gather import WHOLE, Held, Keeper, Piece, Shard, disjoint, missing
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.jobs.records import Records
from mmneuron_lens.runtime.jobs.run import run_jobs
from mmneuron_lens.runtime.jobs.server import Server
from mmneuron_lens.runtime.jobs.watch import Clock, Limits

BATCHES = 4
"""Batches of one group in one job, at most."""

Values = Mapping[tuple[str, str], Any]


@dataclass(frozen=True)
class Jobs:
    """How work is sent to a server.

    - remote: True (where you logged in) or an NDIF server's URL.
    - records: what is known of each job; in memory unless given.
    - again: the command line that runs this, for `mmneuron jobs resume`.
    - limits: jobs in flight, seconds; clock, server: others for a test.
    """

    remote: bool | str
    records: Records | None = None
    again: tuple[str, ...] = ()
    limits: Limits | None = None
    clock: Clock | None = None
    server: Server | None = None


def gather_remotely(
    lens: Lens,
    graph: Graph,
    steps: Sequence[Step],
    encode: Callable[[Sequence[Sample]], tuple[Batch | None, list[Sample]]],
    piece_of: Callable[[int, Values, tuple[str, ...], tuple[str, ...]], Piece],
    *,
    jobs: Jobs,
    keeper: Keeper,
    shard: Shard = WHOLE,
    title: str = "",
    progress: Progress = quietly,
) -> list[Held]:
    """As `gather`, on a server: returns disjoint pieces of all steps that are done, in order.

    - encode: samples to a batch, and those of them that could be read.
    - piece_of: what a job's results are, from the group, the results as `lens.run` gives them, and the ids of the
      samples in it and of those left out.
    """
    chunks = {f"{first:06d}-{last:06d}": range(first, last) for first, last in chunks_of(steps, shard, keeper)}

    def job(places: range) -> Callable[[], tuple[list[Batch], dict[str, Any]]]:
        def make() -> tuple[list[Batch], dict[str, Any]]:
            pairs = [encode(steps[place].samples) for place in places]
            return [batch for batch, _ in pairs if batch is not None], {
                "seen": [sample.id for _, kept in pairs for sample in kept]
            }

        return make

    def keep(name: str, values: Values, facts: dict[str, Any]) -> None:
        places, seen = chunks[name], tuple(facts["seen"])
        asked = [sample.id for place in places for sample in steps[place].samples]
        left = tuple(one for one in asked if one not in seen)
        keeper.keep(Held(places.start, places.stop, piece_of(steps[places.start].group, values, seen, left)))

    run_jobs(
        lens.model,
        graph,
        {name: job(places) for name, places in chunks.items()},
        keep,
        remote=jobs.remote,
        records=jobs.records or Records(None),
        title=title,
        again=jobs.again,
        limits=jobs.limits,
        clock=jobs.clock,
        server=jobs.server,
        progress=progress,
    )
    return disjoint(keeper.held())


def chunks_of(steps: Sequence[Step], shard: Shard, keeper: Keeper) -> list[tuple[int, int]]:
    """The steps that no piece holds, as neighbours of one group, at most `BATCHES` in each, first and last + 1.

    They begin where a group's chunks always begin, so that a job in flight is found again by its name.
    """
    first_of = {}
    for place, step in enumerate(steps):
        first_of.setdefault(step.group, place)
    made: list[tuple[int, int]] = []
    for place in missing(shard.steps(len(steps)), disjoint(keeper.held())):
        offset = place - first_of[steps[place].group]
        if made and made[-1][1] == place and offset % BATCHES:
            made[-1] = (made[-1][0], place + 1)
        else:
            made.append((place, place + 1))
    return made
