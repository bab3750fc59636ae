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


class Targets:
    """The targets of a graph, in groups of one backward each: those that look at different rows are added up."""

    def __init__(self) -> None:
        self._groups: list[list[tuple[Intervention, frozenset[int] | None]]] = []

    def key(self, target: Intervention, rows: tuple[int, ...] | None) -> tuple[Key, bool]:
        """Under which the gradient of a target for these rows (None: all) is known, and whether it is new."""
        asked = (target, None if rows is None else frozenset(rows))
        site = target.sites[0]
        for number, group in enumerate(self._groups):
            if group[0][0].sites[0] != site:
                continue
            if asked in group:
                return _key(number, site), False
            taken = [others for _, others in group]
            if asked[1] is not None and all(others is not None and not others & asked[1] for others in taken):
                group.append(asked)
                return _key(number, site), True
        self._groups.append([asked])
        return _key(len(self._groups) - 1, site), True


def _key(number: int, site: str) -> Key:
    return (f"target {number}", site)


def refuse_gradient(who: str, mode: str, steps: object, here: str, target: Intervention) -> None:
    """Raise `InvalidValue` for a gradient that cannot be had.

    - who, mode, steps: of the intervention that is given it
    - here: the site acted at
    """
    if mode != "reads":
        raise InvalidValue(
            f"{who}: a gradient is known once the forward is done, so a {mode.removesuffix('s')} cannot be given it; "
            "read it first, and write in a second run."
        )
    if steps not in (None, "prompt", (0,)):
        raise InvalidValue(f"{who}: a gradient is that of one forward; leave steps out.")
    if here.endswith("attention.mask"):
        raise InvalidValue(f"{who}: {here} holds yes and no, which have no gradient.")
    if here != target.sites[0] and not comes_before(here, target.sites[0]):
        raise InvalidValue(f"{who}: {here} comes after {target.sites[0]}, so {target.name} does not depend on it.")
