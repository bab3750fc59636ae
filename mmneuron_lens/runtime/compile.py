"""Compile: a graph for one architecture, as plain data that the workers understand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor

from interventions import Graph, Intervention
from interventions.bindings import BatchField, ModuleCall, PerLayer
from interventions.errors import InvalidValue, OutOfRange, UnknownName
from interventions.graph import named_sites
from interventions.sites import GROUP_KINDS, SITES
from mmneuron_lens.architectures import Architecture, Place

Plan = dict[str, Any]


def compile_graph(graph: Graph, architecture: Architecture, typed: bool = True, attention: str = "sdpa") -> list[Plan]:
    """One plan per site that the graph touches, in forward order.

    typed: check each function's jaxtyping annotations at every call (local runs). Raises before anything runs:
    `TypeError` for an unbound argument, `KeyError` for a site, module or kind of position that this
    architecture does not have, `IndexError` for a layer, `ValueError` for a per-layer tensor of the wrong
    length, a write to a place that cannot be written, or attention weights without eager attention.
    """
    graph.check_bound()
    plans: dict[str, Plan] = {}
    for intervention in graph:
        for site in named_sites(intervention.sites, architecture.sites):
            if any(isinstance(value, PerLayer) and value.at(site) is None for value in intervention.bindings.values()):
                continue
            place = architecture.place(site)
            _refuse(intervention, site, place, attention)
            plan = plans.setdefault(site, _plan(site, place))
            plan["acts"].append(_act(intervention, site, place, architecture, typed))
    return [plans[site] for site in architecture.sites if site in plans]


def results_over(graph: Graph, architecture: Architecture) -> dict[tuple[str, str], str]:
    """How each result, by (name, site), is folded."""
    return {
        (intervention.name, site): str(intervention.over)
        for intervention in graph
        if intervention.mode == "reads"
        for site in named_sites(intervention.sites, architecture.sites)
    }


@functools.lru_cache(maxsize=1024)
def typed_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked at every call; axis names are shared between arguments."""
    if function.__name__ == "<lambda>":
        # Has no annotations, and a name that a checked signature cannot be written with.
        return function
    return jaxtyped(typechecker=beartype)(function)


def _plan(site: str, place: Place) -> Plan:
    group = SITES[site].group
    return {
        "site": site,
        "places": place.paths(),
        "port": place.port,
        "group": group,
        "kinds": GROUP_KINDS.get(group or "", ()),
        # The language model runs at every step of a generation; everything before it runs once.
        "stepped": site.startswith("llm."),
        "acts": [],
    }


def _act(
    intervention: Intervention, site: str, place: Place, architecture: Architecture, typed: bool
) -> dict[str, Any]:
    constants, per_layer, fields, modules = {}, {}, {}, {}
    for name, value in intervention.bindings.items():
        if isinstance(value, PerLayer):
            per_layer[name] = _layered(intervention, name, value, site, place)
        elif isinstance(value, BatchField):
            if SITES[site].group is None:
                raise UnknownName(f"{intervention.name}: {site} has no positions, so no field {value.name!r}.")
            fields[name] = value.name
        elif isinstance(value, ModuleCall):
            modules[name] = [_module_path(intervention, module, architecture) for module in value.sites]
        else:
            constants[name] = value
    positions = intervention.positions
    if isinstance(positions, str) and positions not in GROUP_KINDS.get(SITES[site].group or "", ()):
        kinds = ", ".join(GROUP_KINDS.get(SITES[site].group or "", ())) or "none"
        raise UnknownName(f"{intervention.name}: {site} has no {positions!r} positions. Choices: {kinds}.")
    return {
        "name": intervention.name,
        "key": (intervention.name, site),
        "mode": intervention.mode,
        "over": intervention.over,
        "function": typed_function(intervention.function) if typed else intervention.function,
        "constants": constants,
        "per_layer": per_layer,
        "fields": fields,
        "modules": modules,
        "layers": _layers(intervention, site, place),
        "positions": positions,
        "steps": intervention.steps or ("all" if intervention.mode == "writes" else "prompt"),
        "all_beams": intervention.all_beams,
    }


def _layers(intervention: Intervention, site: str, place: Place) -> frozenset[int] | None:
    if intervention.layers is None or place.layers is None:
        return None
    for layer in intervention.layers:
        if not -place.layers <= layer < place.layers:
            raise OutOfRange(f"{intervention.name}: {site} has layers 0 to {place.layers - 1}, not {layer}.")
    return frozenset(layer % place.layers for layer in intervention.layers)


def _layered(intervention: Intervention, name: str, value: PerLayer, site: str, place: Place) -> Tensor:
    tensor = value.at(site)
    assert tensor is not None
    if place.layers is not None and (tensor.ndim == 0 or tensor.shape[0] != place.layers):
        raise InvalidValue(
            f"{intervention.name}: {name}=per_layer(...) has shape {list(tensor.shape)}; "
            f"{site} has {place.layers} layers, so its first axis must be {place.layers}."
        )
    return tensor


def _module_path(intervention: Intervention, site: str, architecture: Architecture) -> str:
    place = architecture.place(site)
    if place.layers is not None:
        raise InvalidValue(f"{intervention.name}: module({site!r}) has one module per layer; name one without layers.")
    return place.path


def _refuse(intervention: Intervention, site: str, place: Place, attention: str) -> None:
    if intervention.mode != "reads" and place.fixed:
        raise InvalidValue(f"{intervention.name}: {site} cannot be written: {place.fixed}.")
    if site.endswith("attention.pattern") and attention != "eager":
        raise InvalidValue(
            f"{intervention.name}: {site} exists with eager attention only, and this model runs {attention}. "
            'Load it with attn_implementation="eager".'
        )
    if site == "llm.attention.mask" and attention not in ("eager", "sdpa"):
        raise InvalidValue(
            f"{intervention.name}: {site} needs eager or sdpa attention, and this model runs {attention}."
        )
