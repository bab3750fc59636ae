"""Shapes: prove on fake tensors that every function of a graph fits its sites, before the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from interventions import SITES
from interventions.errors import InvalidType, InvalidValue, UnknownName
from mmneuron_lens.architectures import Architecture
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire import execute
from mmneuron_lens.wire.types import Act, SitePlan


class ShapeError(InvalidType):
    """A function of the graph does not fit the site it acts at."""


def check_plans(
    plans: list[SitePlan], batch: Batch, architecture: Architecture, module: torch.nn.Module, dtype: torch.dtype
) -> None:
    """Call every function once per site on fake tensors of the shapes this batch gives.

    Raises `KeyError` for a field the batch does not have at that site, `ShapeError` naming the intervention, the
    site, the shapes and what did not fit.
    """
    for plan in plans:
        if not plan["stepped"] and "vision" not in batch.fields:
            raise UnknownName(f"{plan['site']} is never reached: this batch has no image.")
        for act in plan["acts"]:
            for field in act["fields"].values():
                _require(field, plan, batch, act)
            _require_weights(act, plan, batch)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for plan in plans:
            shape = site_shape(plan["site"], batch, architecture)
            for act in plan["acts"]:
                _call(act, plan, batch, shape, dtype, module)


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


def _require(field: str, plan: SitePlan, batch: Batch, act: Act) -> None:
    present = _fields(plan, batch)
    if field not in present:
        raise UnknownName(
            f"{act['name']} at {plan['site']}: the batch has no field {field!r} there. "
            f"Choices: {', '.join(present)}. Add your own with batch.with_fields({field}=...)."
        )
    if field not in ("weight", "kind") and act["steps"] not in ("prompt", (0,)):
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
    if bool((batch.fields[plan["group"]]["weight"] != 1).any()):
        raise InvalidValue(
            f"{act['name']} at {plan['site']} adds over positions but binds no weight, and this batch has positions "
            f'that must not count once (padding): write weight=batch_field("weight") and multiply by it.'
        )


def _fields(plan: SitePlan, batch: Batch) -> Mapping[str, Tensor]:
    """The batch's fields along a site's axes; compiling has refused fields where a site has no positions."""
    assert plan["group"] is not None, f"{plan['site']} has no positions"
    return batch.fields[plan["group"]]


def _call(
    act: Act,
    plan: SitePlan,
    batch: Batch,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    module: torch.nn.Module,
) -> None:
    def fake(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="cpu")

    kind = torch.bool if plan["port"]["view"] == ("mask",) else dtype
    value = torch.empty(shape, dtype=kind, device="cpu")
    arguments = {name: fake(constant) for name, constant in act["constants"].items()}
    layered = plan["places"][0][0] is not None
    arguments |= {name: fake(tensor[0] if layered else tensor) for name, tensor in act["per_layer"].items()}
    arguments |= {
        name: execute.chain([_Meta(execute.find(module, path)) for path in paths])
        for name, paths in act["modules"].items()
    }
    if isinstance(act["positions"], str):
        # Positions of a kind differ in number from row to row: they arrive as one list.
        value = value.flatten(0, 1)
        arguments |= {name: fake(_fields(plan, batch)[field]).flatten(0, 1) for name, field in act["fields"].items()}
    else:
        arguments |= {name: fake(_fields(plan, batch)[field]) for name, field in act["fields"].items()}
    given = (value, torch.empty_like(value)) if act["mode"] == "rewires" else (value,)
    try:
        returned = act["function"](*given, **arguments)
    except Exception as error:
        shapes = ", ".join(
            f"{name} {list(tensor.shape)}"
            for name, tensor in [("value", value), *arguments.items()]
            if isinstance(tensor, Tensor)
        )
        reason = " ".join(str(error).split())
        raise ShapeError(f"{act['name']} does not fit {plan['site']} ({shapes}): {reason[:600]}") from error
    if act["mode"] != "reads" and (not isinstance(returned, Tensor) or returned.shape != value.shape):
        got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise ShapeError(
            f"{act['name']} at {plan['site']} returned {got} for a value of shape {list(value.shape)}; "
            "a write returns a tensor of the same shape."
        )
    if act["over"] == "mean" and not (isinstance(returned, tuple) and len(returned) == 2):
        raise ShapeError(f'{act["name"]}: a read with over="mean" returns the pair (sum, weight).')


class _Meta:
    """A module applied to fake values whatever device and dtype its weights have: only shapes matter here."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, value: Tensor) -> Tensor:
        parameter = next(self.module.parameters(), None)
        if parameter is None:
            return self.module(value)
        return self.module(torch.empty(value.shape, dtype=parameter.dtype, device=parameter.device)).to(value.device)
