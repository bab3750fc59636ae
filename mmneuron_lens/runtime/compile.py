"""Compile: a graph for one architecture, as plain data that the workers understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from interventions import Graph, Intervention
from interventions.errors import InvalidValue, UnknownName
from interventions.sites import GROUP_KINDS, SITES
from mmneuron_lens.architectures import Architecture, Place
from mmneuron_lens.runtime.acting import acting_sites, layers_at, refuse_narrowing
from mmneuron_lens.runtime.folding import folded_read, folding
from mmneuron_lens.runtime.needs import Targets, refuse_gradient, wanted
from mmneuron_lens.wire.beside import rooted
from mmneuron_lens.wire.between import START, act_of
from mmneuron_lens.wire.types import Act, Key, Over, SitePlan, Wanted

SDPA = {"llm": "sdpa", "vision": "sdpa"}
"""Attention as transformers runs it unless told otherwise."""


def compile_graph(
    graph: Graph, architecture: Architecture, typed: bool = True, attention: Mapping[str, str] = SDPA
) -> list[SitePlan]:
    """One plan per site that the graph touches, in forward order.

    typed: check each function's jaxtyping annotations at every call (local runs). attention: as `Model.attentions`.
    Raises before anything runs:
    `TypeError` for an unbound argument, `KeyError` for a site, module or kind of position that this
    architecture does not have, `IndexError` for a layer, `ValueError` for a per-layer tensor of the wrong
    length, a write to a place that cannot be written, attention weights without eager attention, or layers, positions
    or steps that a site does not have.
    """
    graph.check_bound()
    plans: dict[str, SitePlan] = {}
    targets = Targets()

    def plan_at(site: str, who: str) -> SitePlan:
        refuse_attention(who, site, attention)
        return plans.setdefault(site, _plan(site, architecture.place(site)))

    for intervention in graph:
        for site in acting_sites(intervention, architecture):
            place = architecture.place(site)
            _refuse(intervention, site, place)
            act, aims = _act(intervention, site, place, architecture, typed)
            plan_at(site, intervention.name)["acts"].append(act)
            for one in act["values"].values():
                plan_at(one["site"], intervention.name)
            if aims and place.fixed and site.endswith(".pattern"):
                # It cannot be put back, so that what it is made of has to know of gradients.
                queries = f"{site.removesuffix('pattern')}q"
                root: Act = {**act_of("start of gradients", "writes", queries, rooted), "layers": frozenset({0})}
                plan_at(queries, intervention.name)["acts"].append(root)
            for name, target in aims.items():
                refuse_gradient(intervention.name, intervention.mode, intervention.steps, site, target)
                key, new = targets.key(target, intervention.rows)
                act["gradients"][name] = key
                if new:
                    aim = _aim(target, key, intervention.rows, architecture, typed)
                    plan_at(target.sites[0], target.name)["acts"].append(aim)
    for plan in plans.values():
        # A target is a number of what the model goes on with, after all writes.
        plan["acts"].sort(key=lambda act: act["mode"] == "targets")
    return [plans[site] for site in architecture.sites if site in plans]


def with_start(plans: list[SitePlan], architecture: Architecture) -> list[SitePlan]:
    """The plans, with one for the site where the line of integrated gradients lies, in forward order."""
    held = {plan["site"]: plan for plan in plans}
    held.setdefault(START, _plan(START, architecture.place(START)))
    return [held[site] for site in architecture.sites if site in held]


def results_over(graph: Graph, architecture: Architecture) -> dict[Key, Over]:
    """How each result, by (name, site), is folded."""
    return {
        (intervention.name, site): folding(intervention.over, typed=True)
        for intervention in graph
        if intervention.over is not None
        for site in acting_sites(intervention, architecture)
    }


class _Arguments:
    """What one intervention is given at one site, collected from its bindings as plain data."""

    def __init__(self, intervention: Intervention, site: str, architecture: Architecture) -> None:
        self._who, self._mode, self._site, self._architecture = intervention.name, intervention.mode, site, architecture
        self.constants: dict[str, Any] = {}
        self.layered: dict[str, Tensor] = {}
        self.fields: dict[str, str] = {}
        self.paths: dict[str, list[str]] = {}
        self.values: dict[str, Wanted] = {}
        self.targets: dict[str, Intervention] = {}
        for name, binding in intervention.bindings.items():
            binding.give(name, site, self)

    def constant(self, name: str, value: object) -> None:
        self.constants[name] = value

    def per_layer(self, name: str, values: Shaped[Tensor, "..."]) -> None:
        layers = self._architecture.place(self._site).layers
        if layers is not None and (values.ndim == 0 or values.shape[0] != layers):
            raise InvalidValue(
                f"{self._who}: {name}=per_layer(...) has shape {list(values.shape)}; "
                f"{self._site} has {layers} layers, so its first axis must be {layers}."
            )
        self.layered[name] = values

    def batch_field(self, name: str, field: str) -> None:
        if SITES[self._site].group is None:
            raise UnknownName(f"{self._who}: {self._site} has no positions, so no field {field!r}.")
        self.fields[name] = field

    def modules(self, name: str, sites: tuple[str, ...]) -> None:
        self.paths[name] = [self._path(site) for site in sites]

    def value_of(self, name: str, site: str, source: bool) -> None:
        self.values[name] = wanted(self._who, self._mode, self._site, site, source, self._architecture)

    def gradient(self, name: str, target: Intervention) -> None:
        self.targets[name] = target

    def _path(self, site: str) -> str:
        place = self._architecture.place(site)
        if place.layers is not None:
            raise InvalidValue(f"{self._who}: module({site!r}) has one module per layer; name one without layers.")
        return place.path


def is_stepped(site: str) -> bool:
    """Whether a site is reached at every step of a generation, as the language model is, or once, as what is before."""
    return site.startswith("llm.")


def _plan(site: str, place: Place) -> SitePlan:
    group = SITES[site].group
    return {
        "site": site,
        "places": place.paths(),
        "port": place.port,
        "group": group,
        "kinds": GROUP_KINDS.get(group or "", ()),
        "stepped": is_stepped(site),
        "acts": [],
    }


def _aim(target: Intervention, key: Key, rows: tuple[int, ...] | None, architecture: Architecture, typed: bool) -> Act:
    """What computes a target where it reads."""
    target.check_complete()
    site = target.sites[0]
    act, _ = _act(target, site, architecture.place(site), architecture, typed)
    return {**act, "key": key, "mode": "targets", "over": None, "steps": "prompt", "rows": rows}


def _act(
    intervention: Intervention, site: str, place: Place, architecture: Architecture, typed: bool
) -> tuple[Act, dict[str, Intervention]]:
    """One intervention at one site, and the targets whose gradients it is given, by argument."""
    arguments = _Arguments(intervention, site, architecture)
    refuse_narrowing(intervention, site, is_stepped(site), architecture.axes(site))
    act: Act = {
        "name": intervention.name,
        "key": (intervention.name, site),
        "mode": intervention.mode,
        "over": None if intervention.over is None else folding(intervention.over, typed),
        "function": folded_read(intervention, typed),
        "constants": arguments.constants,
        "per_layer": arguments.layered,
        "fields": arguments.fields,
        "modules": arguments.paths,
        "values": arguments.values,
        "gradients": {},
        "layers": layers_at(intervention, site, place),
        "positions": intervention.positions,
        "steps": intervention.steps or ("all" if intervention.mode == "writes" else "prompt"),
        "rows": intervention.rows,
        "copy": 0,
        "all_beams": intervention.all_beams,
    }
    return act, arguments.targets


def _refuse(intervention: Intervention, site: str, place: Place) -> None:
    if intervention.mode != "reads" and place.fixed:
        raise InvalidValue(f"{intervention.name}: {site} cannot be written: {place.fixed}.")


def refuse_attention(who: str, site: str, attention: Mapping[str, str]) -> None:
    """Raise `InvalidValue` for a site that the attention implementation does not have."""
    runs = attention.get(site.partition(".")[0], "eager")
    if site.endswith("attention.pattern") and runs != "eager":
        raise InvalidValue(
            f"{who}: {site} exists with eager attention only, and this model runs {runs}. "
            'Load it with attn_implementation="eager".'
        )
    if site == "llm.attention.mask" and runs not in ("eager", "sdpa"):
        raise InvalidValue(f"{who}: {site} needs eager or sdpa attention, and this model runs {runs}.")
