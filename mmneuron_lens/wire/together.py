"""Together: several graphs in one forward or generation, each on a copy of the batch."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from mmneuron_lens.wire.numbering import asks_for_samples, numbered
from mmneuron_lens.wire.once import copied, longest_answers
from mmneuron_lens.wire.trace import hold, run_held
from mmneuron_lens.wire.types import (
    BatchData,
    Job,
    Key,
    Module,
    Parted,
    Results,
    SitePlan,
    Sources,
    Together,
)


def run_together(
    model: Module, groups: list[Together], batch: BatchData, source: BatchData | None, job: Job
) -> dict[int, Parted]:
    """What each graph comes to, by its place: results, answers and logits as of a run of it alone.

    A forward, or a generation, for each group; the source batch runs once for all of them.
    """
    if asks_for_samples([plan for group in groups for plan in group["plans"]]):
        batch = numbered(batch, job["facts"])
    held = held_for(model, groups, source)
    found = {}
    for group in groups:
        found.update(run_group(model, group, batch, held, job))
    return found


def held_for(model: Module, groups: list[Together], source: BatchData | None) -> Sources:
    """The values on the source batch that any graph of any group takes."""
    if source is None:
        return {}
    plans: dict[str, SitePlan] = {}
    for group in groups:
        for plan in group["plans"]:
            before = plans.get(plan["site"])
            plans[plan["site"]] = plan if before is None else {**plan, "acts": [*before["acts"], *plan["acts"]]}
    return hold(model, list(plans.values()), source)


def run_group(model: Module, group: Together, batch: BatchData, held: Sources, job: Job) -> dict[int, Parted]:
    """One forward, or generation, for the graphs of a group."""
    copies = len(group["graphs"])
    many = copied(batch, copies, group["once"])
    results, answers, logits = run_held(model, group["plans"], many, held, job)
    parts = parted(results, copies)
    lengths = [0] * copies if answers is None else longest_answers(answers, copies, job)
    found = {}
    for copy, graph in enumerate(group["graphs"]):
        stop = lengths[copy] if answers is not None else None
        found[graph] = (parts[copy], of_copy(answers, copy, copies, stop), of_copy(logits, copy, copies, stop))
    return found


def of_copy(
    value: Int[Tensor, "row token"] | Float[Tensor, "row token vocabulary"] | None,
    copy: int,
    copies: int,
    stop: int | None,
) -> Int[Tensor, "row token"] | Float[Tensor, "row token vocabulary"] | None:
    """The rows of one copy, up to the end of its longest answer."""
    if value is None:
        return None
    rows = value.shape[0] // copies
    return value[copy * rows : (copy + 1) * rows, :stop]


def parted(results: Results, copies: int) -> list[Results]:
    """Results by copy, of which their names tell, under their own names."""
    if copies == 1:
        return [results]
    parts: list[Results] = [{} for _ in range(copies)]
    for (name, site), layers in results.items():
        copy, _, own = name.partition(" ")
        parts[int(copy)][own, site] = layers
    return parts


def named_of_copy(key: Key, copy: int) -> Key:
    """The key of a result, with the copy that it is of."""
    return (f"{copy} {key[0]}", key[1])
