"""The registry of selectors: each by its name, with what it needs, its published parameters and its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from interventions.errors import InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.neurons.observed import Observed

Scores = dict[str, Float64[Tensor, "layer neuron domain"]]
"""By site whose neurons are counted, how specific each is to each domain: higher is more; -inf is never taken."""


@dataclass(frozen=True)
class Selector:
    """A way to say which neurons are specific to a domain.

    - name: of the method, as `select(method=...)` takes it.
    - function: from what was measured, and the parameters by name, to scores.
    - needs: what of `Observed` must be there: "counts", "moments", "attributions".
    - defaults: the published parameters.
    - source: the paper, and what of it was unsure.
    """

    name: str
    function: Callable[..., Scores]
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    source: str

    def scores(self, observed: Observed, **parameters: Any) -> Scores:
        """The scores with these parameters over the published ones.

        Raises `UnknownName` for a parameter that it does not have, `InvalidValue` where what it needs is not there.
        """
        for name in parameters:
            if name not in self.defaults:
                raise UnknownName(unknown(f"parameter of {self.name}", name, list(self.defaults)))
        for name in self.needs:
            if not getattr(observed, name):
                raise InvalidValue(f"{self.name} needs {name}, and there are none.")
        return self.function(observed, **{**self.defaults, **parameters})


SELECTORS: dict[str, Selector] = {}


def selector(
    name: str, *, needs: tuple[str, ...] = ("counts",), source: str = "", **defaults: Any
) -> Callable[[Callable[..., Scores]], Callable[..., Scores]]:
    """Registers a function from `Observed` to `Scores` as a method; the function itself comes back."""

    def register(function: Callable[..., Scores]) -> Callable[..., Scores]:
        SELECTORS[name] = Selector(name, function, needs, defaults, source)
        return function

    return register


def selector_named(name: str) -> Selector:
    """Raises `UnknownName` with the choices."""
    if name not in SELECTORS:
        raise UnknownName(unknown("selection method", name, list(SELECTORS)))
    return SELECTORS[name]


def top_share(scores: Float64[Tensor, "layer neuron"], fraction: float) -> Bool[Tensor, "layer neuron"]:
    """The `round(fraction * all)` highest scores, ties by lowest (layer, neuron); never -inf, so there may be fewer."""
    flat = scores.flatten()
    order = flat.sort(descending=True, stable=True).indices[: round(fraction * flat.numel())]
    order = order[flat[order] > -torch.inf]
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[order] = True
    return mask.view_as(scores)
