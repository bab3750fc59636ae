"""Shapes: prove on fake tensors that every function of a graph fits its sites, before the model runs."""

from __future__ import annotations

from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from interventions import SITES
from interventions.errors import InvalidValue, UnknownName
from mmneuron_lens.architectures import Architecture
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.calling import Call, ShapeError
from mmneuron_lens.runtime.proved import Check
from mmneuron_lens.wire.types import Act, SitePlan

__all__ = ["ShapeError", "check_plans", "site_shape"]

FAKE_CALLS = 4096
"""Operations on fake tensors that torch may remember."""


def check_plans(
    plans: list[SitePlan],
    batch: Batch,
    architecture: Architecture,
    module: torch.nn.Module,
    dtype: torch.dtype,
    generated: bool = True,
) -> Check:
    """Call every function once per site on fake tensors of the shapes this batch gives; where these do not suffice,
    on random ones.

    generated: whether tokens may be generated, of which a field of the user's own knows nothing.

    Raises `KeyError` for a field the batch does not have at that site, `ShapeError` naming the intervention, the
    site, the shapes and what did not fit.
    """
    for plan in plans:
        if not plan["stepped"] and "vision" not in batch.fields:
            raise UnknownName(f"{plan['site']} is never reached: this batch has no image.")
        for act in plan["acts"]:
            for field in act["fields"].values():
                _require(field, plan, batch, act, generated)
            _require_weights(act, plan, batch)
    if len(FakeTensorMode.cache) > FAKE_CALLS:
        # It remembers what every operation gives on every shape, for as long as the process lives.
        FakeTensorMode.cache_clear()
    proved: list[str] = []
    tried: dict[str, str] = {}
    for plan in plans:
        shape = site_shape(plan["site"], batch, architecture)
        for act in plan["acts"]:
            shape_of = partial(site_shape, batch=batch, architecture=architecture)
            doubt = Call(act, plan, batch, shape, dtype, module, shape_of).doubt()
            where = f"{act['name']} at {plan['site']}"
            if doubt:
                tried[where] = doubt
            else:
                proved.append(where)
    return Check(tuple(proved), tried)


def site_shape(site: str, batch: Batch, architecture: Architecture) -> tuple[int, ...]:
    """The shape of a site's value on this batch, layers aside."""
    place, group = architecture.place(site), SITES[site].group
    ids = batch.inputs["input_ids"]
    lead = (
        tuple(batch.fields[group]["weight"].shape) if group and group in batch.fields else (ids.shape[0], ids.shape[1])
    )
    sizes = {"batch": lead[0], "tile": lead[0], "token": lead[1], "patch": lead[1], "query": lead[1], "word": lead[1]}
    if site.startswith("vision.") and "vision" in batch.fields:
        tiles, patches = batch.fields["vision"]["weight"].shape
        sizes |= {"tile": tiles, "query": patches, "key": patches}
    if site.startswith("llm.attention"):
        sizes |= {"query": ids.shape[1], "key": ids.shape[1]}
    if site == "qformer.output":
        words = batch.inputs.get("qformer_input_ids")
        sizes["token"] = batch.facts["queries"] + (0 if words is None else words.shape[1])
    return tuple({**sizes, **place.sizes}[axis] for axis in architecture.axes(site).split())


def _require(field: str, plan: SitePlan, batch: Batch, act: Act, generated: bool) -> None:
    assert plan["group"] is not None, f"{plan['site']} has no positions"
    present = batch.fields[plan["group"]]
    if field in ("sample", "position"):
        return
    if field not in present:
        raise UnknownName(
            f"{act['name']} at {plan['site']}: the batch has no field {field!r} there. "
            f"Choices: {', '.join(present)}. Add your own with batch.with_fields({field}=...)."
        )
    if generated and field not in ("weight", "kind") and act["steps"] not in ("prompt", (0,)):
        raise UnknownName(
            f"{act['name']} at {plan['site']}: field {field!r} is not known for generated tokens; "
            'narrow it with .at(steps="prompt").'
        )


def _require_weights(act: Act, plan: SitePlan, batch: Batch) -> None:
    if act["mode"] != "reads" or act["over"] == "list" or plan["group"] is None:
        return
    # The batch's own weight under any name, or any field of yours as the argument called weight.
    if "weight" in act["fields"] or "weight" in act["fields"].values():
        return
    # A function that is told of samples folds by sample, and may look at one position of each.
    if not isinstance(act["over"], str) and "sample" in act["fields"].values():
        return
    weight = batch.fields[plan["group"]]["weight"]
    largest = act["over"] == "max"
    if bool((weight == 0 if largest else weight != 1).any()):
        does = "takes the largest" if largest else "adds" if isinstance(act["over"], str) else "folds"
        cure = "multiply by it" if act["over"] in ("sum", "mean") else "leave out where it is 0"
        raise InvalidValue(
            f"{act['name']} at {plan['site']} {does} over positions but binds no weight, and this batch has positions "
            f'that must not count once (padding): write weight=batch_field("weight") and {cure}.'
        )
