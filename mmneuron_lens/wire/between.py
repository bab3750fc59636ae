"""Between: gradients along the straight line from one input to another, averaged, as integrated gradients need them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from mmneuron_lens.wire.beside import wanted_layers
from mmneuron_lens.wire.forward import forward
from mmneuron_lens.wire.types import Act, BatchData, Gradients, Module, Results, SitePlan, Sources

START = "llm.embedding"
"""Where the line lies: image features and word embeddings, as the first layer is given them."""


def forward_between(
    model: Module,
    plans: list[SitePlan],
    batch: BatchData,
    sources: Sources,
    shares: list[float],
    settings: dict[str, Any],
) -> tuple[Results, Any]:
    """A forward of the batch whose reads are given the mean of the gradients at the points of the line.

    sources: of the other input, `START` among them. shares: of the way to this batch, one for each point. settings: of
    the last forward. Returns `(results, output)` of the forward of the batch itself.
    """
    keys = {key[0]: key for plan in plans for act in plan["acts"] for key in act["gradients"].values()}
    mean: Gradients = {}
    for share in shares:
        found, _ = forward(model, gradients_alone(plans, share), batch, sources, None, {"use_cache": False})
        for (_, site), layers in found.items():
            for layer, values in layers.items():
                for name, gradient in values[0].items():
                    place, part = (keys[name], site, layer), gradient / len(shares)
                    mean[place] = mean[place] + part if place in mean else part
    return forward(model, without(plans, "targets"), batch, sources, None, settings, mean)


def gradients_alone(plans: list[SitePlan], share: float) -> list[SitePlan]:
    """The same writes and targets at a point of the line, and of reads only the gradients that they are given."""
    made: list[SitePlan] = []
    for plan in plans:
        acts = [act for act in plan["acts"] if act["mode"] != "reads"]
        given = [act for act in plan["acts"] if act["gradients"]]
        if plan["site"] == START:
            acts = [moving(share), *acts]
        if given:
            acts.append(collecting(plan, given))
        made.append({**plan, "acts": acts})
    wanted = wanted_layers(made)
    return [plan for plan in made if plan["acts"] or plan["site"] in wanted]


def without(plans: list[SitePlan], mode: str) -> list[SitePlan]:
    """The plans without what is of this mode."""
    return [{**plan, "acts": [act for act in plan["acts"] if act["mode"] != mode]} for plan in plans]


def moving(share: float) -> Act:
    """A write that takes the value to a point of the line."""
    return {**act_of("between", "rewires", START, on_the_line), "constants": {"share": share}}


def collecting(plan: SitePlan, acts: list[Act]) -> Act:
    """A read of the gradients that these are given, by target, at the layers where one of them acts."""
    layers = [act["layers"] for act in acts]
    every = None if None in layers else frozenset().union(*(some for some in layers if some is not None))
    gradients = {key[0]: key for act in acts for key in act["gradients"].values()}
    act = act_of("gradients", "reads", plan["site"], by_target)
    return {**act, "gradients": gradients, "layers": every}


def act_of(name: str, mode: Any, site: str, function: Any) -> Act:
    """An intervention at every layer and position of a site, with no argument but the value."""
    return {
        "name": name,
        "key": (name, site),
        "mode": mode,
        "over": "list" if mode == "reads" else None,
        "function": function,
        "constants": {},
        "per_layer": {},
        "fields": {},
        "modules": {},
        "values": {},
        "gradients": {},
        "layers": None,
        "positions": None,
        "steps": "prompt",
        "rows": None,
        "copy": 0,
        "all_beams": False,
    }


def on_the_line(
    value: Float[Tensor, "row token hidden"], source: Float[Tensor, "row token hidden"], share: float
) -> Float[Tensor, "row token hidden"]:
    return source + share * (value - source)


def by_target(value: Float[Tensor, "..."], **gradients: Float[Tensor, "..."]) -> dict[str, Tensor]:
    return gradients
