"""Moments in a run: every domain's, and the counts that they hold; here, in parts, or on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.batching.gather import WHOLE, Held, Keeper, Shard, missing
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.remote import Jobs
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import CountPlan, count_steps, name_again, plan_count
from mmneuron_lens.experiments.moments import MOMENTS, counts_from, moments_of, plan_moments
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.count import counts_key
from mmneuron_lens.runs.folder import key_of
from mmneuron_lens.runs.keys import Key
from mmneuron_lens.runs.pieces import Pieces
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.jobs.records import Records


def moments_stage(
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
    **planned: Any,
) -> dict[str, Moments | None]:
    """The moments of every domain, each made unless it is there, and its counts from the same forwards.

    Counts that are there already stay as they are. Settings as of `count_stage`; a domain's moments are None, and its
    counts are not written, until a last process has made the last shard.

    Raises `InvalidValue` for `top`: top activations come with counts alone.
    """
    if top is not None:
        raise InvalidValue(
            f"moments and the top {top} activations are not taken in one pass; count with --moments, and run "
            "`mmneuron neurons` for what neurons answer to."
        )
    made: dict[str, Moments | None] = {}
    for domain, samples in samples_by_domain.items():
        counting = plan_count(lens, samples, problems=problems, **planned)
        plan = plan_moments(counting, lens)
        key = moments_key(plan)

        def steps(keeper: Keeper, shard: Shard = WHOLE, plan: CountPlan = plan) -> list[Held]:
            records = Records(keeper.jobs if isinstance(keeper, Pieces) else None)
            sent = Jobs(lens.remote, records, tuple(again), **(jobs or {})) if lens.remote else None
            shared: dict[str, Any] = {"problems": problems, "progress": progress, "jobs": sent, "read": MOMENTS}
            return count_steps(lens, plan, keeper=keeper, shard=shard, workers=workers, **shared)

        made[domain] = None
        if shard != WHOLE and store.get(key, Moments) is None:
            with store.writing(key, shard):
                held = steps(store.pieces(key, shard), shard)
            # The shard that ends last makes the whole.
            if missing(range(len(plan.steps)), held) and store.get(key, Moments) is None:
                continue
        title = f"{lens.name}: how often and how strongly neurons are active, {domain}"
        found = made[domain] = store.get_or_make(
            key,
            lambda keeper, plan=plan, steps=steps: moments_of(steps(keeper), plan.facts),
            Moments,
            what=title,
            wait=shard != WHOLE,
        )
        counts = store.get_or_make(
            counts_key(counting), lambda _, found=found: counts_from(found), Counts, wait=shard != WHOLE
        )
        name_again(plan, counts, problems)
    return made


def moments_key(plan: CountPlan) -> Key:
    """The key of a domain's moments."""
    return key_of("moments", plan.facts["model id"], plan.domain, facts=plan.facts)
