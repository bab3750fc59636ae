"""Top activations in a run: of all neurons beside their counts, or of chosen ones, each made unless it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.format import dumps
from mmneuron_lens.artifacts.top_activations import TopActivations
from mmneuron_lens.batching.gather import Held, Keeper
from mmneuron_lens.batching.remote import Jobs
from mmneuron_lens.experiments.count import CountPlan, counts_of
from mmneuron_lens.experiments.read_tops import read_tops
from mmneuron_lens.experiments.tops import TopRead, top_read, without_tops
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.folder import key_of
from mmneuron_lens.runs.keys import Key, differences
from mmneuron_lens.runs.pieces import Pieces
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.jobs.records import Records

KIND = "top_activations"
"""Where those of all neurons lie; those of chosen ones lie at `examples/MODEL/DOMAIN`."""


def counts_with_tops(
    store: Store,
    plan: CountPlan,
    top: int,
    key: Key,
    steps: Callable[[Keeper, TopRead | None], list[Held]],
    what: str,
) -> Counts:
    """The counts of one domain, and beside them the top activations of all neurons from the same pass.

    - top: how many images are kept of each neuron.
    - key: of the counts. steps: makes the pieces of both, or of the counts alone.

    Counts that are there already stay; their pass is made again for the top activations.
    """
    read = top_read(plan.steps, top)
    found: list[Counts] = []

    def make(keeper: Keeper) -> TopActivations:
        held = steps(keeper, read)
        alone = [replace(one, piece=replace(one.piece, tensors=without_tops(one.piece.tensors))) for one in held]
        found.append(store.get_or_make(key, lambda _: counts_of(alone, plan.facts), Counts))
        return read.folded(held, plan.facts["model id"], plan.domain, plan.facts)

    store.get_or_make(tops_key(plan, read), make, TopActivations, what=f"{what}, and their top activations")
    return (
        found[0]
        if found
        else store.get_or_make(key, lambda keeper: counts_of(steps(keeper, None), plan.facts), Counts, what=what)
    )


def tops_key(plan: CountPlan, read: TopRead) -> Key:
    """The key of the top activations of one domain."""
    kind = KIND if read.neurons is None else "examples"
    return key_of(kind, plan.facts["model id"], plan.domain, facts={**plan.facts, **read.facts})


def tops_stage(
    lens: Lens,
    store: Store,
    plan: CountPlan,
    chosen: Mapping[str, Tensor],
    k: int,
    *,
    again: tuple[str, ...] = (),
    jobs: Mapping[str, Any] | None = None,
    **shared: Any,
) -> TopActivations:
    """The top activations of chosen neurons in one domain: those that `count --top` kept, or read now.

    - jobs: settings of `Jobs`, where the lens runs on a server.
    - shared: workers, problems and progress of `read_tops`.
    """
    if kept := _kept(store, plan, k):
        return kept
    read = top_read(plan.steps, k, chosen)

    def make(keeper: Keeper) -> TopActivations:
        records = Records(keeper.jobs if isinstance(keeper, Pieces) else None)
        sent = Jobs(lens.remote, records, again, **(jobs or {})) if lens.remote else None
        return read_tops(lens, plan, chosen, k, keeper=keeper, jobs=sent, **shared)

    what = f"{lens.name}: reading top activations, {plan.domain}"
    return store.get_or_make(tops_key(plan, read), make, TopActivations, what=what)


def _kept(store: Store, plan: CountPlan, k: int) -> TopActivations | None:
    """What `count --top` kept of the same questions, asked in the same way; says why it is not used otherwise."""
    if store.folder is None:
        return None
    path = store.path(key_of(KIND, plan.facts["model id"], plan.domain, facts={}))
    if not path.is_file():
        return None
    kept, held = TopActivations.load_with_key(path)
    facts = {name: value for name, value in (held or {}).items() if name != "top"}
    wanted = {**plan.facts, "neurons": "all"}
    if dumps(facts) == dumps(wanted) and kept.parameters["k"] >= k:
        store.say(f"already done: {kept.model}: reading top activations, {plan.domain}")
        return kept
    why = differences(facts, wanted) or [f"it keeps {kept.parameters['k']} of each neuron, not {k}"]
    store.say(f"{path} is of another reading ({why[0]}), so that top activations are read again.")
    return None
