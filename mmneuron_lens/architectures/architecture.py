"""Architecture: where each named site of one model lies, how large it is, and what can reach the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from interventions.errors import UnknownName
from interventions.sites import GROUP_KINDS, SITES, site_order, unknown
from mmneuron_lens.wire.facts_types import Facts, Port, Step


@dataclass(frozen=True)
class Place:
    """A site in one model.

    - path: the module, with `{l}` for the layer. layers: how many; None for a site without layers.
    - sizes: the axes whose length the configuration fixes. axes: the value's, where they are not those of `SITES`.
    - at: its output, its first input, or a keyword input.
    - item: which element of a tuple, attribute of an output object, or name of the keyword.
    - view: the steps from the module's value to the site's (`wire.views`).
    - dead: layers that cannot reach the logits; `True`: none can. why_dead: why.
    - fixed: why it cannot be written.
    """

    path: str
    layers: int | None
    sizes: Mapping[str, int]
    at: Literal["output", "input", "keyword"] = "output"
    item: str | int | None = None
    view: tuple[Step, ...] = ()
    axes: str | None = None
    dead: frozenset[int] | Literal[True] = frozenset()
    why_dead: str = ""
    fixed: str = ""

    def paths(self) -> list[tuple[int | None, str]]:
        """`(layer, module path)` for every layer, or one `(None, path)`."""
        if self.layers is None:
            return [(None, self.path)]
        return [(layer, self.path.format(l=layer)) for layer in range(self.layers)]

    def reaches(self, layer: int | None) -> bool:
        """Whether a layer can reach the logits."""
        return self.dead is not True and layer not in self.dead

    @property
    def port(self) -> Port:
        """What the workers need to know of where the value is held."""
        return {"at": self.at, "item": self.item, "view": self.view}


@dataclass(frozen=True)
class Architecture:
    """All sites of one model by name, in forward order, and the facts that laying out a batch needs.

    - name: of the architecture. places: where each site lies, by name. facts: of the model, for laying out.
    """

    name: str
    places: Mapping[str, Place]
    facts: Facts

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.places.items(), key=lambda item: site_order(item[0])))
        object.__setattr__(self, "places", ordered)
        object.__setattr__(self, "facts", {"kinds": GROUP_KINDS, "once": branches(ordered), **self.facts})

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of its sites, in forward order."""
        return tuple(self.places)

    def place(self, site: str) -> Place:
        """Raises `KeyError` with the choices for a site this architecture does not have."""
        if site not in self.places:
            raise UnknownName(f"{self.name} has no such site. {unknown('site', site, self.sites)}")
        return self.places[site]

    def axes(self, site: str) -> str:
        """The axes of a site's value in one layer, as a jaxtyping dimension string."""
        return self.place(site).axes or SITES[site].axes

    def neurons(self, site: str) -> int:
        """How many neurons a site has over all its layers."""
        place = self.place(site)
        return (place.layers or 1) * place.sizes["neuron"]


def branches(places: Mapping[str, Place]) -> tuple[str, ...]:
    """Paths of the modules in which sites before the language model lie, in forward order: of each path as much as no
    part of the language model lies below. None where such a site lies in a part of it.
    """
    above = {".".join(parts[:end]) for parts in _llm_paths(places) for end in range(1, len(parts) + 1)}
    found: dict[str, None] = {}
    for site, place in places.items():
        if not site.startswith("llm."):
            parts = place.path.split(".")
            apart = [path for end in range(1, len(parts) + 1) if (path := ".".join(parts[:end])) not in above]
            if not apart:
                return ()
            found[apart[0]] = None
    return tuple(found)


def _llm_paths(places: Mapping[str, Place]) -> list[list[str]]:
    return [place.path.split(".") for site, place in places.items() if site.startswith("llm.")]


def under(prefix: str, places: Mapping[str, Place]) -> dict[str, Place]:
    """The same places below a module path."""
    return {
        site: replace(place, path=f"{prefix}.{place.path}" if prefix else place.path) for site, place in places.items()
    }
