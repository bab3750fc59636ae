"""Describe: what a served model is made of, by a few values of every weight."""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor


class Description(TypedDict):
    """What a served model is made of: the kind of device and, per weight, name, shape, dtype and its first values."""

    device: str
    weights: list[tuple[str, list[int], str, Tensor]] | None


def describe(model: Any) -> Description:
    """The kind of device, and of every parameter its name, shape, dtype and first 64 values.

    Quick and small, also for a large model on a GPU. A sandbox keeps the weights out of reach: weights is then None.
    """
    parameters = list(model._module.named_parameters())
    if any(parameter.is_meta for _, parameter in parameters):
        return {"device": "server", "weights": None}
    weights = []
    for name, parameter in parameters:
        some = parameter.detach().reshape(-1)[:64].cpu().contiguous()
        weights.append((name, list(parameter.shape), str(parameter.dtype), some))
    return {"device": parameters[0][1].device.type, "weights": weights}
