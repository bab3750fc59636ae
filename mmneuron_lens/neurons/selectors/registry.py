"""The registry of selectors: each by its name, with what it needs, its published parameters and its source."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from interventions.errors import InvalidType, InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.neurons.observed import Observed

Scores = dict[str, Float64[Tensor, "layer neuron domain"]]
"""By site whose neurons are counted, how specific each is to each domain: higher is more; -inf is never taken.

A site may be left out: then it has no neurons.
"""

NEEDS = ("counts", "moments", "attributions")

OURS = "mmneuron_lens.neurons.selectors."
"""Where the functions of this package's own methods are."""


@dataclass(frozen=True)
class Selector:
    """A way to say which neurons are specific to a domain.

    - name: of the method, as `select(method=...)` takes it.
    - function: from what was measured, and the parameters by name, to scores.
    - needs: what of `Observed` must be there: "counts", "moments", "attributions"; () where no data are looked at.
    - defaults: the published parameters.
    - source: the paper, and what of it was unsure.
    """

    name: str
    function: Callable[..., Scores]
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    source: str

    @property
    def described(self) -> dict[str, Any]:
        """What tells a function of a user's from another one of this name: the sha256 of its source; {} of ours."""
        if self.function.__module__.startswith(OURS):
            return {}
        return {"selector sha256": hashlib.sha256(_source_of(self.function)).hexdigest()}

    def scores(self, observed: Observed, **parameters: Any) -> Scores:
        """The scores with these parameters over the published ones, by site in the order of the counts.

        - observed: what was measured of the model, with all that the method needs.

        Raises `UnknownName` for a parameter that it does not have, `InvalidValue` where what it needs is not there, is
        of another model, or where what comes back are no scores.
        """
        for name in parameters:
            if name not in self.defaults:
                choices = list(self.defaults) or ["no parameter"]
                raise UnknownName(unknown(f"parameter of {self.name}", name, choices))
        for name in self.needs:
            if not getattr(observed, name):
                raise InvalidValue(f"{self.name} needs {name}, and there are none; {HOW[name]}.")
            _refuse_other_models(name, observed)
        return checked(self.name, self.function(observed, **{**self.defaults, **parameters}), observed)


HOW = {
    "counts": "make them with `mmneuron count --model ... --corpus ... --out RUN`",
    "moments": "make them with `mmneuron count --moments --model ... --corpus ... --out RUN`",
    "attributions": "make them with `mmneuron select RUN --method attribution --model ... --corpus ...`",
}
"""The next step where something that a method needs is not there."""

SELECTORS: dict[str, Selector] = {}


def selector(
    name: str, *, needs: tuple[str, ...] | str = ("counts",), source: str = "", **defaults: Any
) -> Callable[[Callable[..., Scores]], Callable[..., Scores]]:
    """Registers a function from `Observed` to `Scores` as a method; the function itself comes back.

        @selector("mine", needs=("moments",), top=3)
        def mine(observed, top): ...

    - name: by which `select(..., method="mine")` and `mm.identify(..., method="mine")` find it.
    - needs: what the function looks at: any of "counts", "moments", "attributions".
    - source: where it is from.
    - defaults: its parameters, each with its usual value.

    A function of the same module takes the place of an earlier one of that name, so that a cell may be run again after
    a change. Raises `InvalidValue` for a name of this package's own or of another module's method, and for parameters
    that the function does not take.
    """
    if not isinstance(cast(object, name), str) or not name.strip():
        raise InvalidType(f"a method has a name, text such as 'mine', not {name!r:.60}.")
    asked = (needs,) if isinstance(needs, str) else tuple(needs)
    for need in asked:
        if need not in NEEDS:
            raise UnknownName(unknown(f"need of {name}", need, NEEDS))

    def register(function: Callable[..., Scores]) -> Callable[..., Scores]:
        known = SELECTORS.get(name)
        if known is not None and known.function.__module__ != function.__module__:
            whose = "this package" if known.function.__module__.startswith(OURS) else known.function.__module__
            raise InvalidValue(f"{name!r} is a method of {whose} already; give yours another name.")
        _refuse_other_parameters(name, function, defaults)
        SELECTORS[name] = Selector(name, function, asked, defaults, source)
        return function

    return register


def selector_named(name: str) -> Selector:
    """The method of a name, ours or registered with `selector`. Raises `UnknownName` with the choices."""
    if name not in SELECTORS:
        raise UnknownName(unknown("selection method", name, list(SELECTORS)))
    return SELECTORS[name]


def checked(name: str, scores: object, observed: Observed) -> Scores:
    """The scores that a method gave, on the CPU. Raises `InvalidType` or `InvalidValue` with what is wrong of them."""
    if not isinstance(scores, Mapping) or not scores:
        raise InvalidType(f"{name} returned {scores!r:.60}; a method returns a dict of scores by site.")
    counted = observed.counts[0].active
    for site, values in cast("dict[str, Any]", scores).items():
        if site not in counted:
            raise InvalidValue(f"{name} scored {site!r}, where nothing was counted; choose from {', '.join(counted)}.")
        if not isinstance(values, Tensor) or values.dtype != torch.float64:
            what = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidType(f"{name} at {site}: scores are a float64 tensor, not {what}; return scores.double().")
        shape = (counted[site].shape[1], counted[site].shape[3], len(observed.domains))
        if tuple(values.shape) != shape:
            raise InvalidValue(
                f"{name} at {site}: scores have shape {tuple(values.shape)}, not {shape} [layer, neuron, domain]."
            )
        if wrong := int((values.isnan() | (values == torch.inf)).sum()):
            raise InvalidValue(
                f"{name} at {site}: {wrong} scores are NaN or +inf; give -inf where a neuron must never be taken."
            )
    found = cast(Scores, scores)
    return {site: found[site].detach().cpu() for site in counted if site in found}


def above_zero(scores: Float64[Tensor, "*at"]) -> Float64[Tensor, "*at"]:
    """Scores with -inf in place of 0 and what is below it."""
    return scores.masked_fill(scores <= 0, -torch.inf)


def top_share(scores: Float64[Tensor, "layer neuron"], fraction: float) -> Bool[Tensor, "layer neuron"]:
    """The `round(fraction * all)` highest scores, ties by lowest (layer, neuron); never -inf, so there may be fewer."""
    flat = scores.flatten()
    order = flat.sort(descending=True, stable=True).indices[: round(fraction * flat.numel())]
    order = order[flat[order] > -torch.inf]
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[order] = True
    return mask.view_as(scores)


def _refuse_other_models(name: str, observed: Observed) -> None:
    models = {one.model for one in getattr(observed, name)}
    if models != {observed.counts[0].model}:
        raise InvalidValue(
            f"{name} are of {', '.join(sorted(models))}, and counts of {observed.counts[0].model}; give both of one."
        )


def _refuse_other_parameters(name: str, function: Callable[..., Scores], defaults: Mapping[str, Any]) -> None:
    try:
        inspect.signature(function).bind(None, **defaults)
    except TypeError as error:
        given = ", ".join(defaults) or "none"
        raise InvalidValue(
            f"{name}: the function takes other parameters than are registered ({given}): {error}; name each in both."
        ) from None


def _source_of(function: Callable[..., Scores]) -> bytes:
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return repr(function).encode() if code is None else code.co_code + repr(code.co_consts).encode()
