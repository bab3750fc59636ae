"""Remote gathering: steps of work as jobs on a server, a few batches each; the same pieces as here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interventions import Graph
from mmneuron_lens.batching.batches import Step, ids_of
from mmneuron_lens.batching.gather import (
    WHOLE,
    Held,
    Keeper,
    Piece,
    Shard,
    disjoint,
    missing,
    named_again,
    refuse_none_left,
)
from mmneuron_lens.batching.left_out import LeftOut, is_of_a_sample
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.jobs.records import Records
from mmneuron_lens.runtime.jobs.run import Kept, Make, run_jobs
from mmneuron_lens.runtime.jobs.server import JobRaised, Server
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


Encode = Callable[[Sequence[Sample]], tuple[Batch | None, list[Sample]]]
"""Samples to a batch, and those of them that could be encoded."""


def nothing(batches: Sequence[Batch]) -> Mapping[str, Any]:
    """No facts."""
    return {}


def gather_remotely(
    lens: Lens,
    graph: Graph,
    steps: Sequence[Step],
    encode: Encode,
    piece_of: Callable[[int, Values, Mapping[str, Any]], Piece],
    *,
    jobs: Jobs,
    keeper: Keeper,
    shard: Shard = WHOLE,
    left: LeftOut,
    told: Callable[[Sequence[Batch]], Mapping[str, Any]] = nothing,
    title: str = "",
    progress: Progress = quietly,
) -> list[Held]:
    """As `gather`, on a server: returns disjoint pieces of all steps that are done, in order.

    - encode: samples to a batch; names those in `left` that it refuses.
    - piece_of: what a job's results are, from the group, the results as `lens.run` gives them, and the job's facts:
      under "seen" the ids of the samples in it, and what is told of its batches.
    - told: facts of a job's batches, as JSON; none unless given.
    - left: where samples are named that cannot be encoded, or for which a job raises. Such a job is sent again by
      parts, down to single samples, and then without those that raise alone.
    """
    named_again(steps, disjoint(keeper.held(steps)), left)
    chunks = {f"{first:06d}-{last:06d}": range(first, last) for first, last in chunks_of(steps, shard, keeper)}

    def parts(places: range) -> list[list[Sample]]:
        """The samples of each step, without those that are known to raise."""
        return [[one for one in steps[place].samples if not left.holds(one)] for place in places]

    def job(places: range) -> Make:
        def make() -> tuple[list[Batch], dict[str, Any]]:
            pairs = [encode(samples) for samples in parts(places) if samples]
            reasons = left.reasons_of(sample for place in places for sample in steps[place].samples)
            seen = ids_of(sample for _, kept in pairs for sample in kept)
            batches = [batch for batch, _ in pairs if batch is not None]
            return batches, {"seen": list(seen), "left": reasons, **told(batches)}

        return make

    def keep(name: str, values: Values, facts: dict[str, Any]) -> None:
        places, reasons = chunks[name], facts.get("left", {})
        piece = piece_of(steps[places.start].group, values, facts)
        keeper.keep(Held(places.start, places.stop, replace(piece, left=tuple(reasons), reasons=reasons)))

    def sent(made: Mapping[str, Make], keep: Kept, records: Records, **shown: Any) -> dict[str, JobRaised]:
        """The jobs that raised for what they were given; any other error ends this."""
        raised: dict[str, JobRaised] = {}

        def takes(name: str, error: JobRaised) -> bool:
            if left.told is None or not is_of_a_sample(error):
                return False
            raised[name] = error
            return True

        run_jobs(
            lens.model, graph, made, keep, remote=jobs.remote, records=records, takes=takes, limits=jobs.limits,
            clock=jobs.clock, server=jobs.server, **shown,
        )  # fmt: skip
        return raised

    def refuse(places: range, error: JobRaised) -> None:
        """Names the samples for which a job raises alone; raises `error` if there are none."""
        suspects, found = [some for some in parts(places) if some], False
        suspects = _halves(suspects[0]) if len(suspects) == 1 else suspects
        while suspects:
            probes = {f"{places.start:06d}-{places.stop:06d} {number}": some for number, some in enumerate(suspects)}
            raised = sent({name: _probe(some, encode) for name, some in probes.items()}, _ignored, Records(None))
            for name, one in raised.items():
                if len(probes[name]) == 1:
                    left.refuse(probes[name][0], one)
                    found = True
            suspects = [half for name in raised if len(probes[name]) > 1 for half in _halves(probes[name])]
        if not found:
            raise error

    shown = {"title": title, "again": jobs.again, "progress": progress}
    raised = sent({name: job(places) for name, places in chunks.items()}, keep, jobs.records or Records(None), **shown)
    while raised:
        for name, error in raised.items():
            refuse(chunks[name], error)
        again = {name: job(chunks[name]) for name in raised}
        raised = sent(again, keep, jobs.records or Records(None), **shown)
    found = disjoint(keeper.held(steps))
    refuse_none_left(steps, found, left)
    return found


def _probe(samples: Sequence[Sample], encode: Encode) -> Make:
    def make() -> tuple[list[Batch], dict[str, Any]]:
        batch, _ = encode(samples)
        return [] if batch is None else [batch], {}

    return make


def _halves(samples: list[Sample]) -> list[list[Sample]]:
    half = (len(samples) + 1) // 2
    return [some for some in (samples[:half], samples[half:]) if some]


def _ignored(name: str, values: Values, facts: dict[str, Any]) -> None:
    """What a probe counted is not used: its samples are counted together with the others."""


def chunks_of(steps: Sequence[Step], shard: Shard, keeper: Keeper) -> list[tuple[int, int]]:
    """The steps that no piece holds, as neighbours of one group, at most `BATCHES` in each, first and last + 1.

    They begin where a group's chunks always begin, so that a job in flight is found again by its name.
    """
    first_of = {}
    for place, step in enumerate(steps):
        first_of.setdefault(step.group, place)
    made: list[tuple[int, int]] = []
    for place in missing(shard.steps(len(steps)), disjoint(keeper.held(steps))):
        offset = place - first_of[steps[place].group]
        if made and made[-1][1] == place and offset % BATCHES:
            made[-1] = (made[-1][0], place + 1)
        else:
            made.append((place, place + 1))
    return made
