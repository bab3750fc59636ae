"""Which layers can reach the logits: said by the architecture when neurons are counted, and kept in the provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Bool
from torch import Tensor

UNREACHABLE = "unreachable"
"""Provenance: by site, the layers that cannot reach the logits, and why; {} where all can."""


class UnreachableLayers(TypedDict):
    """Layers of one site (0 for a site that is no list of layers) from which nothing reaches the logits."""

    layers: list[int]
    why: str


@dataclass(frozen=True)
class Reachability:
    """What is known of the layers of a model.

    - sites: by site, what cannot reach the logits; None where nobody said, as in artifacts made by hand.
    """

    sites: Mapping[str, UnreachableLayers] | None

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Reachability:
        """From the provenance of counts, or of what was made from them."""
        return cls(provenance.get(UNREACHABLE))

    @property
    def known(self) -> bool:
        """Whether it was said which layers can reach the logits."""
        return self.sites is not None

    def layers(self, site: str) -> tuple[int, ...]:
        """The layers of a site that are known not to reach the logits."""
        found = (self.sites or {}).get(site)
        return tuple(found["layers"]) if found else ()

    def why(self, site: str) -> str:
        """Why these layers cannot reach the logits; "" for a site all of whose layers can."""
        found = (self.sites or {}).get(site)
        return found["why"] if found else ""

    def reaches(self, site: str, layer: int) -> bool | None:
        """Whether a layer of a site can reach the logits; None where that is not known."""
        return layer not in self.layers(site) if self.known else None

    def mask(self, site: str, layers: int) -> Bool[Tensor, " layer"]:
        """True for each of so many layers of a site that is not known to be unreachable."""
        reached = torch.ones(layers, dtype=torch.bool, device="cpu")
        reached[list(self.layers(site))] = False
        return reached
