"""Forms: what a read's result must look like, known before anything runs; what a server sends is held to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmneuron_lens.architectures import Architecture
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.calling import Call
from mmneuron_lens.runtime.shapes import site_shape
from mmneuron_lens.runtime.typed import ShapeError
from mmneuron_lens.wire.types import Act, Key, SitePlan


@dataclass(frozen=True)
class Form:
    """Shape and dtype of a tensor. Floating dtypes are one: a server may compute in another. None: any size."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def misfit(self, value: Any) -> str:
        """How a value differs, in a few words; empty where it does not."""
        if not isinstance(value, Tensor):
            return f"{type(value).__name__}, not a tensor of shape {self.sizes()}"
        if value.ndim != len(self.shape) or any(
            due not in (None, size) for due, size in zip(self.shape, value.shape, strict=True)
        ):
            return f"shape {list(value.shape)}, not {self.sizes()}"
        if value.dtype != self.dtype and not (value.dtype.is_floating_point and self.dtype.is_floating_point):
            return f"{str(value.dtype).removeprefix('torch.')}, not {str(self.dtype).removeprefix('torch.')}"
        return ""

    def sizes(self) -> str:
        """The shape as it is shown."""
        return f"[{', '.join('any' if size is None else str(size) for size in self.shape)}]"


Forms = Form | dict[Any, Any] | tuple[Any, ...] | None
"""A tensor's form, or those of the parts of a dict or tuple; None where a form is not known before."""


def forms_of(
    plans: Iterable[SitePlan], batch: Batch, architecture: Architecture, module: torch.nn.Module, dtype: torch.dtype
) -> dict[Key, Forms]:
    """By read over the prompt that does not list, the form of its result on every batch like this one.

    Those whose shape depends on values have none. What a function folds is there by layer, what a fold of ours folds by
    the layers that are stacked; sizes are known that depend on no number of rows or positions, and that folding does
    not change.
    """
    found: dict[Key, Forms] = {}
    for plan in plans:
        shape = site_shape(plan["site"], batch, architecture)
        for act in plan["acts"]:
            if act["mode"] != "reads" or act["over"] == "list" or act["steps"] not in ("prompt", (0,)):
                continue
            shape_of = partial(site_shape, batch=batch, architecture=architecture)
            call = Call(act, plan, batch, shape, dtype, module, shape_of)
            if call.doubt() is not None:
                continue
            if isinstance(act["over"], str):
                found[act["key"]] = _form(call.returned, _axis(act, plan))
                continue
            form, layers = _common([call.returned, call.folded, *_of_more(call, dtype)]), _layers(act, plan)
            if isinstance(act["over"], dict) and None not in layers:
                found[act["key"]] = {tuple(layers): _stacked(form, len(layers))}
            else:
                found[act["key"]] = dict.fromkeys(layers, form)
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


def _layers(act: Act, plan: SitePlan) -> list[int | None]:
    """The layers that a result has; None at a site without."""
    return [layer for layer, _ in plan["places"] if layer is None or act["layers"] is None or layer in act["layers"]]


def _axis(act: Act, plan: SitePlan) -> tuple[int, ...]:
    """The axis of layers that a result begins with; none at a site without."""
    layers = _layers(act, plan)
    return () if None in layers else (len(layers),)


class _More(Call):
    """The same call on one more row and one more position."""

    def fields(self) -> dict[str, Tensor]:
        longer = {name: torch.cat([one, one[:, -1:]], 1) for name, one in super().fields().items()}
        return {name: torch.cat([one, one[-1:]]) for name, one in longer.items()}


def _of_more(call: Call, dtype: torch.dtype) -> list[Any]:
    """What a read returns on more, and that folded with itself; None where it cannot be told."""
    rows, positions, *rest = call.shape
    more = _More(call.act, call.plan, call.batch, (rows + 1, positions + 1, *rest), dtype, call.module)
    try:
        known = call.plan["group"] is not None and more.doubt() is None
    except ShapeError:
        # It is bound to the sizes of this batch, so a batch like it may have others.
        known = False
    return [more.returned, more.folded] if known else [None]


def _common(values: list[Any]) -> Forms:
    """The form that all have, sizes that differ being any; where one is None, all sizes are."""
    head = values[0]
    if isinstance(head, Tensor):
        same = None not in values
        sizes = [{one.shape[axis] for one in values} if same else set[int]() for axis in range(head.ndim)]
        return Form(tuple(one.pop() if len(one) == 1 else None for one in sizes), head.dtype)
    names = head if isinstance(head, dict) else range(len(head))
    parts = {name: _common([None if one is None else one[name] for one in values]) for name in names}
    return parts if isinstance(head, dict) else tuple(parts.values())


def _stacked(form: Forms, layers: int) -> Forms:
    """The form of so many layers, of a fold that takes them at once."""
    if isinstance(form, Form):
        return Form((layers, *form.shape), form.dtype)
    assert isinstance(form, dict), "our folds fold dicts"
    return {name: _stacked(part, layers) for name, part in form.items()}


def _form(returned: Any, layers: tuple[int, ...]) -> Forms:
    if isinstance(returned, Tensor):
        return Form((*layers, *returned.shape), returned.dtype)
    if isinstance(returned, dict) and all(isinstance(name, str) for name in returned):
        return {name: _form(part, layers) for name, part in returned.items()}
    if isinstance(returned, tuple):
        return tuple(_form(part, layers) for part in returned)
    return None
