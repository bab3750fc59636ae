"""Reach: which passes and positions a run comes by, and what of a graph it would never reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interventions.errors import InvalidValue, OutOfRange, UnknownName
from interventions.narrowing import show_positions, show_steps
from mmneuron_lens.architectures import Architecture
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.narrowed import index_of, refuse_rows
from mmneuron_lens.runtime.shapes import site_shape
from mmneuron_lens.wire.execute import columns_at
from mmneuron_lens.wire.trace import deferred
from mmneuron_lens.wire.types import Act, Job, SitePlan


def refuse_unreached(plans: list[SitePlan], batch: Batch, architecture: Architecture, job: Job) -> None:
    """Raise for rows or positions that the batch does not have, or steps that do not come; what is left acts somewhere.

    Raises `InvalidValue` for steps, `OutOfRange` for a row or position, `UnknownName` for a kind of position; each
    names the intervention, the site and what there is.
    """
    new = new_tokens(job["generation"], batch.prompt_length)
    forced = job["logits"] or any(deferred(act) for plan in plans for act in plan["acts"])
    for plan in plans:
        for act in plan["acts"]:
            steps, positions = act["steps"], act["positions"]
            refuse_rows(act, plan, batch)
            if positions is None and (steps == "all" or steps == "prompt"):
                continue
            # The last token is only read: no pass comes after it but the one that reads the whole answer.
            last = 0 if not new or not plan["stepped"] else new if forced or deferred(act) else new - 1
            passes = _passes(act, plan, last, new)
            if isinstance(positions, str):
                _refuse_kind(positions, act, plan, batch, passes)
            elif positions is not None:
                shape = site_shape(plan["site"], batch, architecture)
                index = index_of(act, plan, batch, shape)
                tokens = shape[1] if index is None else torch.empty(shape, device="meta")[index].shape[1]
                _refuse_columns(positions, act, plan, batch, tokens, passes)


def new_tokens(generation: Mapping[str, Any], prompt_length: int) -> int:
    """How many tokens a generation may add; 0 for a forward."""
    if not generation:
        return 0
    return generation.get("max_new_tokens") or max((generation.get("max_length") or 20) - prompt_length, 1)


def _passes(act: Act, plan: SitePlan, last: int, new: int) -> range | tuple[int, ...]:
    """The passes in which an intervention acts, 0 being the prompt's; `last` is the last that comes."""
    steps, who = act["steps"], f"{act['name']} at {plan['site']}"
    if steps == "all":
        return range(last + 1) if act["mode"] != "rewires" else (0,)
    if steps == "prompt":
        return (0,)
    there = f"max_new_tokens={new} gives steps 0 to {last}" if new else "a forward is step 0; use lens.generate"
    if steps == "generated":
        if last < 1:
            raise InvalidValue(f"{who}: steps=generated never come: {there}.")
        return range(1, last + 1)
    never = [step for step in steps if step > last]
    if never:
        raise InvalidValue(f"{who}: steps={show_steps(tuple(never))} never come: {there}.")
    return steps


def _refuse_kind(kind: str, act: Act, plan: SitePlan, batch: Batch, passes: range | tuple[int, ...]) -> None:
    assert plan["group"] is not None
    fields = batch.fields[plan["group"]]
    index = index_of(act, plan, batch, fields["weight"].shape)
    fields = fields if index is None else {name: fields[name][index] for name in ("weight", "kind")}
    if (kind == "generated" and any(passes)) or (0 in passes and _has(fields, plan["kinds"].index(kind))):
        return
    present = [name for index, name in enumerate(plan["kinds"]) if _has(fields, index)]
    when = "in these steps" if 0 not in passes else "in this batch" if kind != "generated" else "before they are there"
    cure = ' Generate, and write .at(steps="generated").' if kind == "generated" else ""
    whose = "no row" if act["rows"] is None else "none of its rows"
    raise UnknownName(
        f"{act['name']} at {plan['site']}: {whose} has {kind!r} positions {when}. "
        f"The prompts have {', '.join(present)}.{cure}"
    )


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Start and length of each run of columns, neighbours as one."""
    joined = spans[:1]
    for start, count in spans[1:]:
        first, before = joined[-1]
        if first + before == start:
            joined[-1] = (first, before + count)
        else:
            joined.append((start, count))
    return joined


def _has(fields: Mapping[str, Tensor], index: int) -> bool:
    return bool((fields["kind"][..., index] & (fields["weight"] > 0)).any())


def _refuse_columns(
    positions: tuple[Any, ...],
    act: Act,
    plan: SitePlan,
    batch: Batch,
    tokens: int,
    passes: range | tuple[int, ...],
) -> None:
    length = batch.prompt_length if plan["stepped"] else tokens
    # The prompt's columns are one pass; each token after it is one of its own.
    spans = [(0, tokens) if step == 0 else (length + step - 1, 1) for step in passes]
    there = " and ".join(f"{start} to {start + count - 1}" for start, count in _joined(spans))
    who, shown = f"{act['name']} at {plan['site']}", show_positions(positions)
    if positions[0] == "slice":
        if not any(columns_at(positions, *span, length) for span in spans):
            raise OutOfRange(f"{who}: positions {shown} meet no position; there are {there}.")
        return
    asked = [position + length if position < 0 else position for position in positions]
    for position, column in zip(positions, asked, strict=True):
        if not any(start <= column < start + count for start, count in spans):
            raise OutOfRange(f"{who}: there is no position {position}; there are {there}.")
    if len(set(asked)) < len(asked):
        raise InvalidValue(f"{who}: positions {shown} mean {asked}, one of them twice; name each once.")
    if act["all_beams"] and max(asked) >= length and asked != sorted(asked):
        raise InvalidValue(
            f"{who}: positions {shown} are read as they are generated, so not in this order; write {sorted(asked)}."
        )
