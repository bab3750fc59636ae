"""Forms: what a read's result must look like, known before anything runs; what a server sends is held to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmneuron_lens.architectures import Architecture
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.calling import Call
from mmneuron_lens.runtime.shapes import site_shape
from mmneuron_lens.wire.types import Act, Key, SitePlan


@dataclass(frozen=True)
class Form:
    """Shape and dtype of a tensor. Floating dtypes are one: a server may compute in another."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def misfit(self, value: Any) -> str:
        """How a value differs, in a few words; empty where it does not."""
        if not isinstance(value, Tensor):
            return f"{type(value).__name__}, not a tensor of shape {list(self.shape)}"
        if tuple(value.shape) != self.shape:
            return f"shape {list(value.shape)}, not {list(self.shape)}"
        if value.dtype != self.dtype and not (value.dtype.is_floating_point and self.dtype.is_floating_point):
            return f"{str(value.dtype).removeprefix('torch.')}, not {str(self.dtype).removeprefix('torch.')}"
        return ""


Forms = Form | dict[str, Any] | tuple[Any, ...] | None
"""A tensor's form, or those of the parts of a dict or tuple; None where a form is not known before."""


def forms_of(
    plans: Iterable[SitePlan], batch: Batch, architecture: Architecture, module: torch.nn.Module, dtype: torch.dtype
) -> dict[Key, Forms]:
    """By read that sums or averages over the prompt, the form of its result on every batch like this one.

    Those whose shape depends on values have none.
    """
    found: dict[Key, Forms] = {}
    for plan in plans:
        shape = site_shape(plan["site"], batch, architecture)
        for act in plan["acts"]:
            if act["mode"] != "reads" or act["over"] == "list" or act["steps"] not in ("prompt", (0,)):
                continue
            shape_of = partial(site_shape, batch=batch, architecture=architecture)
            call = Call(act, plan, batch, shape, dtype, module, shape_of)
            if call.doubt() is None:
                found[act["key"]] = _form(call.returned, _layers(act, plan))
    return found


def misfits(value: Any, form: Forms) -> str:
    """How a result differs from its form, in a few words; empty where it does not, or no form is known."""
    if form is None:
        return ""
    if isinstance(form, Form):
        return form.misfit(value)
    parts = form if isinstance(form, dict) else dict(enumerate(form))
    given: Any = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, tuple) else None
    if given is None or set(given) != set(parts) or isinstance(form, dict) != isinstance(value, dict):
        return f"{type(value).__name__}, not a {type(form).__name__} of {', '.join(map(str, parts))}"
    return next((f"{name}: {says}" for name, part in parts.items() if (says := misfits(given[name], part))), "")


def _layers(act: Act, plan: SitePlan) -> tuple[int, ...]:
    """The axis of layers that a result begins with; none at a site without."""
    places: Mapping[Any, str] = dict(plan["places"])
    if None in places:
        return ()
    return (len(places) if act["layers"] is None else len(act["layers"]),)


def _form(returned: Any, layers: tuple[int, ...]) -> Forms:
    if isinstance(returned, Tensor):
        return Form((*layers, *returned.shape), returned.dtype)
    if isinstance(returned, dict) and all(isinstance(name, str) for name in returned):
        return {name: _form(part, layers) for name, part in returned.items()}
    if isinstance(returned, tuple):
        return tuple(_form(part, layers) for part in returned)
    return None
