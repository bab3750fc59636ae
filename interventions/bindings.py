"""Bindings: arguments of an intervention that exist only when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from interventions.errors import InvalidType


@dataclass(frozen=True, eq=False)
class PerLayer:
    """A tensor whose first axis is the layer; or one such tensor per site (no layer axis where the site has none)."""

    values: Tensor | Mapping[str, Tensor]

    def at(self, site: str) -> Tensor | None:
        """The tensor for this site, or None when the mapping leaves the site out."""
        return self.values if isinstance(self.values, Tensor) else self.values.get(site)


@dataclass(frozen=True)
class BatchField:
    """A field of the batch (`weight`, `kind`, or the user's own) in the axes of the site."""

    name: str


@dataclass(frozen=True)
class ModuleCall:
    """Modules of the model applied one after the other: a callable of one tensor."""

    sites: tuple[str, ...]


def per_layer(values: Tensor | Mapping[str, Tensor]) -> PerLayer:
    """Bind a different value at each layer: `per_layer(tensor)` with a leading layer axis, or `{site: tensor}`.

    At a site without layers (`projector.act`) the tensor is passed whole. An intervention does nothing at
    sites that a mapping leaves out.
    """
    return PerLayer(values if isinstance(values, Tensor) else dict(values))


def batch_field(name: str) -> BatchField:
    """Bind a field of the batch: `weight` (how often a position counts), `kind` (one-hot), or your own."""
    return BatchField(name)


def module(*sites: str) -> ModuleCall:
    """Bind modules named by site, applied in order: `module("llm.norm", "llm.unembed")` is the logit lens."""
    if not sites:
        raise InvalidType('module() needs at least one site name, e.g. module("llm.norm", "llm.unembed").')
    return ModuleCall(sites)
