"""Acting: at which sites of one architecture an intervention acts, and what it asks that none of them has."""

from __future__ import annotations

from interventions import Intervention
from interventions.errors import InvalidValue, OutOfRange, UnknownName
from interventions.narrowing import show_steps
from interventions.sites import GROUP_KINDS, SITES, is_glob, named_sites, unknown
from mmneuron_lens.architectures import Architecture, Place

ALONG = ("token", "patch", "query", "word")
"""Axes behind the first that `positions` are counted along."""


def acting_sites(intervention: Intervention, architecture: Architecture) -> tuple[str, ...]:
    """The sites where an intervention acts, in forward order.

    A binding by site leaves out sites of a glob, and none that is named. Raises `UnknownName` for a name or glob that
    means no site of this architecture, or a key of a binding where it does not act; `InvalidValue` for a site that is
    named and has no value.
    """
    who, named = intervention.name, set[str]()
    for pattern in intervention.sites:
        found = named_sites((pattern,), architecture.sites)
        if not found:
            near = unknown("site", pattern, architecture.sites)
            raise UnknownName(f"{who}: {pattern!r} means no site of {architecture.name}. {near}")
        named.update(found if not is_glob(pattern) else ())
    acting = named_sites(intervention.sites, architecture.sites)
    keys = {name: value.keys for name, value in intervention.bindings.items() if value.keys is not None}
    for name, sites in keys.items():
        left_out = [site for site in acting if site in named and site not in sites]
        if left_out:
            raise InvalidValue(
                f"{who}: {name}=per_layer({{...}}) has no value for {', '.join(left_out)}, where it is to act; "
                f"add one, or leave the site out of .at(...). It has {', '.join(sites)}."
            )
    acting = tuple(site for site in acting if all(site in sites for sites in keys.values()))
    for name, sites in keys.items():
        unused = [site for site in sites if site not in acting]
        if unused:
            raise UnknownName(
                f"{who}: {name}=per_layer({{...}}) has a value for {', '.join(unused)}, where {who} does not act; "
                f"it acts at {', '.join(acting) or 'none of its keys'}. Narrow it with .at(...) or leave the key out."
            )
    return acting


def layers_at(intervention: Intervention, site: str, place: Place) -> frozenset[int] | None:
    """The layers where an intervention acts at a site; None means all.

    Raises `InvalidValue` at a site without layers, for a layer that is meant twice, or for a read in another order than
    the model's; `OutOfRange` for a layer that is not there.
    """
    asked = intervention.layers
    if asked is None:
        return None
    who = intervention.name
    if place.layers is None:
        raise InvalidValue(f"{who}: {site} has no layers, so layers={list(asked)} mean nothing; leave them or it out.")
    for layer in asked:
        if not -place.layers <= layer < place.layers:
            raise OutOfRange(f"{who}: {site} has layers 0 to {place.layers - 1}, not {layer}.")
    found = [layer % place.layers for layer in asked]
    if len(set(found)) < len(found):
        raise InvalidValue(
            f"{who}: layers={list(asked)} mean {found} at {site}, one of them twice; name each layer once."
        )
    if intervention.mode == "reads" and found != sorted(found):
        raise InvalidValue(
            f"{who}: layers={list(asked)} mean {found} at {site}, and results come back in the model's order; "
            f"write layers={sorted(found)}."
        )
    return frozenset(found)


def refuse_narrowing(intervention: Intervention, site: str, stepped: bool, axes: str) -> None:
    """Raise `InvalidValue` or `UnknownName` for positions or steps that a site never has.

    - stepped: whether it is reached at every step of a generation, or once
    - axes: of its value, layers aside
    """
    who, positions, steps = intervention.name, intervention.positions, intervention.steps
    kinds = GROUP_KINDS.get(SITES[site].group or "", ())
    if isinstance(positions, str) and positions not in kinds:
        raise UnknownName(f"{who}: {site} has no {positions!r} positions. Choices: {', '.join(kinds) or 'none'}.")
    if positions is not None and axes.split()[1] not in ALONG:
        raise InvalidValue(f"{who}: {site} [{axes}] has no positions to choose from; leave positions out.")
    if not stepped and steps is not None and steps not in ("prompt", "all", (0,)):
        raise InvalidValue(
            f"{who}: {site} is reached once, with the prompt, so steps={show_steps(steps)} never come there; "
            "leave steps or the site out."
        )
