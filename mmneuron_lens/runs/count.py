"""Counts in a run: every domain's, here, in parts by several processes, or on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.batching.gather import WHOLE, Held, Keeper, Shard, missing
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.remote import Jobs
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import CountPlan, count_steps, counts_of, name_again, plan_count
from mmneuron_lens.experiments.tops import TopRead
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.folder import key_of
from mmneuron_lens.runs.keys import Key
from mmneuron_lens.runs.pieces import Pieces
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runs.tops import counts_with_tops
from mmneuron_lens.runtime.jobs.records import Records


def count_stage(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    shard: Shard = WHOLE,
    workers: int = 0,
    again: Sequence[str] = (),
    jobs: Mapping[str, Any] | None = None,
    top: int | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
    kind: str = "counts",
    **planned: Any,
) -> dict[str, Counts | None]:
    """The counts of every domain, each made unless it is there.

    - shard: this process makes only these steps; the domain's counts are None until a last process has made the last.
    - workers: processes that decode images ahead.
    - again: the command line that runs this, for `mmneuron jobs resume`.
    - jobs: settings of `Jobs`, where the lens runs on a server.
    - top: also keep so many top activations of every neuron, in the same pass; not with a shard.
    - kind: where in the run they are kept.
    - planned: settings of `plan_count`.

    Raises `InvalidValue` for `top` with a shard.
    """
    if top is not None and shard != WHOLE:
        raise InvalidValue(
            f"top is {top}, and shard {shard}; count with --top in one process, or without it in shards."
        )
    made: dict[str, Counts | None] = {}
    for domain, samples in samples_by_domain.items():
        plan = plan_count(lens, samples, problems=problems, **planned)
        key = counts_key(plan, kind)

        def steps(
            keeper: Keeper, shard: Shard = WHOLE, plan: CountPlan = plan, read: TopRead | None = None
        ) -> list[Held]:
            records = Records(keeper.jobs if isinstance(keeper, Pieces) else None)
            sent = Jobs(lens.remote, records, tuple(again), **(jobs or {})) if lens.remote else None
            shared = {"problems": problems, "progress": progress, "jobs": sent, "top": read}
            return count_steps(lens, plan, keeper=keeper, shard=shard, workers=workers, **shared)

        made[domain] = None
        if shard != WHOLE and store.get(key, Counts) is None:
            with store.writing(key, shard):
                held = steps(store.pieces(key, shard), shard)
            # The shard that ends last makes the whole.
            if missing(range(len(plan.steps)), held) and store.get(key, Counts) is None:
                continue
        title = f"{lens.name}: counting active neurons, {domain}"
        if top is not None:
            counts = made[domain] = counts_with_tops(
                store, plan, top, key, lambda keeper, read, steps=steps: steps(keeper, read=read), title
            )
            name_again(plan, counts, problems)
            continue
        counts = made[domain] = store.get_or_make(
            key,
            lambda keeper, plan=plan, steps=steps: counts_of(steps(keeper), plan.facts),
            Counts,
            what=title,
            wait=shard != WHOLE,
        )
        name_again(plan, counts, problems)
    return made


def counts_key(plan: CountPlan, kind: str = "counts") -> Key:
    """The key of a domain's counts."""
    return key_of(kind, plan.facts["model id"], plan.domain, facts=plan.facts)
