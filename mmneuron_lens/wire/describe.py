"""Describe: what a served model is made of, by a few values of every weight."""

from __future__ import annotations


def describe(model):
    """The kind of device, and of every parameter its name, shape, dtype and first 64 values.

    Quick and small, also for a large model on a GPU.
    """
    weights = []
    for name, parameter in model._module.named_parameters():
        some = parameter.detach().reshape(-1)[:64].cpu().contiguous()
        weights.append((name, list(parameter.shape), str(parameter.dtype), some))
    kind = next(model._module.parameters()).device.type
    return {"device": kind, "weights": weights}
