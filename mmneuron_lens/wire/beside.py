"""Beside: values of other sites and gradients on their way to whom they are given, and reads that wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmneuron_lens.wire.facts_types import Layer
from mmneuron_lens.wire.ports import hand_back, own, seeing, with_own
from mmneuron_lens.wire.types import Act, Beside, Context, Followed, Module, SitePlan, Waiting
from mmneuron_lens.wire.views import see, unsee


def nothing_beside(plans: Sequence[SitePlan]) -> Beside:
    """What a forward begins with."""
    keys = {act["key"] for plan in plans for act in plan["acts"] if act["mode"] == "targets"}
    return {
        "wanted": wanted_layers(plans),
        "values": {},
        "waiting": [],
        "followed": {},
        "totals": {},
        "targets": len(keys),
        "gradients": {},
    }


def wanted_layers(plans: Sequence[SitePlan]) -> Mapping[str, set[Layer]]:
    """By site, the layers where its value is given to some intervention elsewhere; None at a site without layers."""
    found = {}
    for plan in plans:
        for act in plan["acts"]:
            for wanted in act["values"].values():
                if not wanted["source"]:
                    here = [layer for layer, _ in plan["places"] if act["layers"] is None or layer in act["layers"]]
                    found.setdefault(wanted["site"], set()).update(here if wanted["layered"] else [None])
    return found


def has_targets(plans: Sequence[SitePlan]) -> bool:
    """Whether a forward has to keep what a backward needs."""
    return any(act["mode"] == "targets" for plan in plans for act in plan["acts"])


def asking(
    act: Act, plan: SitePlan, layer: Layer, step: int, value: Shaped[Tensor, "..."], context: Context
) -> Waiting:
    """An intervention with the value that it acts on, and of what else it is given all that is there."""
    one: Waiting = {"act": act, "plan": plan, "layer": layer, "step": step, "value": value, "given": {}}
    receive(one, context)
    return one


def receive(one: Waiting, context: Context) -> None:
    """Hand over what is there of the values and gradients that an intervention is given."""
    act, plan, layer, beside, given = one["act"], one["plan"], one["layer"], context["beside"], one["given"]
    for name, key in act["gradients"].items():
        if (key, plan["site"], layer) in beside["gradients"]:
            given[name] = beside["gradients"][key, plan["site"], layer]
    for name, wanted in act["values"].items():
        there = layer if wanted["layered"] else None
        if name in given:
            continue
        if wanted["source"]:
            given[name] = context["sources"][wanted["site"], there]
            continue
        passed = beside["values"].get(wanted["site"])
        # What is reached once, before the language model, stays.
        if passed is not None and passed[0] == there and passed[1] in (one["step"], None):
            given[name] = passed[2]


def complete(one: Waiting) -> bool:
    """Whether an intervention has all that it is given."""
    return len(one["given"]) == len(one["act"]["values"]) + len(one["act"]["gradients"])


def refuse_incomplete(waiting: Sequence[Waiting]) -> None:
    """Raise `ValueError` where a forward ended before something that an intervention is given had come by."""
    for one in waiting:
        act = one["act"]
        sites = [wanted["site"] for name, wanted in act["values"].items() if name not in one["given"]]
        if not complete(one):
            raise ValueError(
                f"{act['name']} at {one['plan']['site']}: {', '.join(sites) or 'its target'} did not come by in this "
                "forward, so its value cannot be given."
            )


def pass_on(plan: SitePlan, layer: Layer, step: int, value: Shaped[Tensor, "..."], context: Context) -> None:
    """Keep a value for whom it is given, until that of the next layer comes."""
    # What the model does to it in place later must not reach it.
    kept = value.detach().clone()
    context["beside"]["values"][plan["site"]] = (layer, step if plan["stepped"] else None, kept)


def ready(context: Context) -> list[Waiting]:
    """The reads that need not wait any longer, taken out of those that do."""
    beside = context["beside"]
    for one in beside["waiting"]:
        receive(one, context)
    found = [one for one in beside["waiting"] if complete(one)]
    beside["waiting"] = [one for one in beside["waiting"] if not complete(one)]
    return found


def follow(
    plan: SitePlan,
    acts: Sequence[Act],
    envoy: Module,
    held: Any,
    value: Shaped[Tensor, "..."],
    changed: bool,
    layer: Layer,
    context: Context,
) -> Shaped[Tensor, "..."]:
    """Put back the value, and remember the tensor that the model goes on with, to take gradients of.

    It is cut from what lies before it where nothing there needs a gradient. Returns the site's view of it.
    """
    port, how = plan["port"], seeing(held, layer, context)
    tensor = unsee(value, port["view"], own(held, port), how) if changed else own(held, port)
    passed = tensor
    if not tensor.requires_grad:
        tensor, changed = tensor.detach().requires_grad_(), True
        # What the model does to it in place is done to a copy.
        passed = tensor.clone()
    if changed:
        hand_back(envoy, port, with_own(port, held, passed))
    place: Followed = {"tensor": tensor, "version": tensor._version, "view": port["view"], "how": how}
    for act in acts:
        for key in act["gradients"].values():
            context["beside"]["followed"].setdefault(key, {})[plan["site"], layer] = place
    return see(passed, port["view"], how)


def add_target(act: Act, numbers: Float[Tensor, " row"], rows: int, context: Context) -> None:
    """Add what a target returned to the number that gradients are taken of. Raises `ValueError` for another shape."""
    if not isinstance(numbers, torch.Tensor) or tuple(numbers.shape) != (rows,):
        got = list(numbers.shape) if isinstance(numbers, torch.Tensor) else type(numbers).__name__
        raise ValueError(f"{act['name']} returned {got} for {rows} rows; a target returns one number a row.")
    totals, total = context["beside"]["totals"], numbers.sum()
    totals[act["key"]] = totals[act["key"]] + total if act["key"] in totals else total


def rooted(value: Shaped[Tensor, "*all"]) -> Shaped[Tensor, "*all"]:
    """The same value, from which on gradients are known."""
    return value if value.requires_grad else value.detach().requires_grad_().clone()


def refuse_cut(act: Act, site: str, value: Shaped[Tensor, "..."], context: Context) -> None:
    """Raise `ValueError` where a target is not computed from the values that its gradient is asked at.

    Behind the model, a value that needs a gradient was made of something; one that another process sent was not.
    """
    followed = context["beside"]["followed"].get(act["key"], {})
    sent = value.requires_grad and value.is_leaf and (site, None) not in followed
    constant = not value.requires_grad and any(there.startswith("llm.") for there, _ in followed)
    if sent or constant:
        raise ValueError(
            f"{act['name']} at {site} does not depend on {', '.join(sorted({there for there, _ in followed}))}: all of "
            "it was written anew, or the model runs in another process than this code, as in NDIF's sandbox, where "
            "there are no gradients."
        )


def go_back(context: Context) -> None:
    """One backward for each number that is complete; its gradients, in the sites' own axes, are kept for reads."""
    beside = context["beside"]
    while beside["totals"]:
        key, total = beside["totals"].popitem()
        beside["targets"] -= 1
        followed = beside["followed"].pop(key, {})
        tensors = [place["tensor"] for place in followed.values()]
        found = [None] * len(tensors)
        if total.requires_grad:
            found = torch.autograd.grad(total, tensors, retain_graph=beside["targets"] > 0, allow_unused=True)
        for (site, layer), place, gradient in zip(followed, followed.values(), found, strict=True):
            tensor = place["tensor"]
            if tensor._version != place["version"]:
                raise ValueError(
                    f"{site}, layer {layer}: the model changes this value in place, so it has no gradient."
                )
            # Where the target does not depend on it.
            whole = torch.zeros_like(tensor) if gradient is None else gradient
            beside["gradients"][key, site, layer] = see(whole, place["view"], place["how"])
