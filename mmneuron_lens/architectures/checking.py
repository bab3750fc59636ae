"""Checking: that the paths of an architecture exist in a module and have the sizes that it says."""

from __future__ import annotations

import torch

from interventions.errors import InvalidValue
from mmneuron_lens.architectures.architecture import Architecture, Place


def check_places(architecture: Architecture, module: torch.nn.Module) -> None:
    """Check every path, and the width of the linear layer that makes or takes each value; works on meta.

    Raises `InvalidValue` naming the site and path, so that a renamed module is found on load, not by a wrong number.
    """
    fused: dict[str, int] = {}
    for place in architecture.places.values():
        for step in place.view:
            if step[0] == "columns":
                fused[place.path] = max(step[2], fused.get(place.path, 0))
    for site, place in architecture.places.items():
        for _, path in place.paths():
            try:
                found = module.get_submodule(path)
            except AttributeError as error:
                raise InvalidValue(
                    f"{architecture.name}: {site} should be at {path!r}, which this model does not have ({error}). "
                    "The installed transformers names it differently; correct the table in mmneuron_lens/architectures."
                ) from error
            _check_width(architecture, site, place, path, found, fused.get(place.path))


def _check_width(
    architecture: Architecture, site: str, place: Place, path: str, found: torch.nn.Module, fused: int | None
) -> None:
    if not isinstance(found, torch.nn.Linear):
        return
    expected = fused or _width(place)
    actual = found.in_features if place.at == "input" else found.out_features
    if expected and actual != expected:
        raise InvalidValue(f"{architecture.name}: {site} at {path!r} is {actual} wide, not {expected} as configured.")


def _width(place: Place) -> int:
    sizes = place.sizes
    if "dimension" in sizes:
        return sizes["head"] * sizes["dimension"]
    return sizes.get("neuron") or sizes.get("vocabulary") or sizes.get("hidden") or 0
