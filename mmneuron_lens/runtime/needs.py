"""Needs: what an intervention is given beside the value at its site, as far as the model decides whether it can be."""

from __future__ import annotations

from interventions import SITES, Intervention
from interventions.errors import InvalidValue
from interventions.sites import site_order
from mmneuron_lens.architectures import Architecture
from mmneuron_lens.wire.types import Key, Wanted


def wanted(who: str, mode: str, here: str, there: str, source: bool, architecture: Architecture) -> Wanted:
    """The value of one site as an intervention at another is given it.

    - who, mode: of the intervention
    - here: the site acted at
    - there: the site whose value is given

    Raises `UnknownName` for a site that this architecture does not have; `InvalidValue` for one whose layers are not
    those acted at, and for a write that asks for what comes later.
    """
    place, own = architecture.place(there), architecture.place(here)
    layered = place.layers is not None
    if layered and (own.layers != place.layers or stack_of(here) != stack_of(there)):
        raise InvalidValue(
            f"{who}: {there} has a value at each of its {place.layers} layers, and {here} "
            f"{'has no layers' if own.layers is None else 'is not in that stack'}; so value_of({there!r}) is none of "
            "them."
        )
    if not source and here == there:
        raise InvalidValue(f"{who}: value_of({there!r}) is the value that it is given first; leave it out.")
    if mode != "reads" and not source and not comes_before(there, here):
        raise InvalidValue(f"{who}: {there} comes after {here}, so a write there cannot be given its value.")
    alike = SITES[there].group is not None and SITES[there].group == SITES[here].group
    return {"site": there, "layered": layered, "alike": alike, "source": source}


def stack_of(site: str) -> str:
    """The stack of layers that a site belongs to."""
    return "projector.deep" if site.startswith("projector.deep") else site.partition(".")[0]


def comes_before(first: str, second: str) -> bool:
    """Whether one site is reached before another, at one layer where both have layers."""
    return site_order(first) < site_order(second)


def target_key(target: Intervention, number: int) -> Key:
    """Under which a target is known while a forward runs."""
    return (f"gradient {number} of {target.name}", target.sites[0])
