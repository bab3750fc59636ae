"""Ports: a site's value read from where its module holds it, in the site's own axes, and written back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from mmneuron_lens.wire.types import Context, Heads, Layer, Module, Part, Port, View


def take(envoy: Module, port: Port, layer: Layer, context: Context) -> tuple[Any, Shaped[Tensor, "..."]]:
    """The raw value that the module holds at a port, and the site's view of it."""
    if port["at"] == "output":
        held = envoy.output
        value = held if port["item"] is None else held[port["item"]]
    else:
        held = envoy.inputs
        positional, keywords = held
        value = keywords.get(port["item"]) if port["at"] == "keyword" else first(positional, keywords, port["item"])
    kind = port["view"]
    if kind is None:
        return held, value
    if kind[0] == "mask":
        return held, allowed(value, held, layer)
    if kind[0] == "rows":
        return held, value.unflatten(0, (context["rows"] * context["beams"], -1))
    return held, view(value, kind)


def put(envoy: Module, port: Port, held: Any, value: Shaped[Tensor, "..."]) -> None:
    """Write the site's view back where it came from."""
    if port["at"] == "output":
        if port["item"] is None:
            envoy.output = unview(value, port["view"], held)
        elif isinstance(held, tuple):
            whole = list(held)
            whole[port["item"]] = unview(value, port["view"], held[port["item"]])
            envoy.output = tuple(whole)
        else:
            whole = held.copy()
            whole[port["item"]] = unview(value, port["view"], held[port["item"]])
            envoy.output = type(held)(**whole)
        return
    positional, keywords = held
    if port["at"] == "keyword":
        keywords = dict(keywords)
        keywords[port["item"]] = unview(value, port["view"], keywords.get(port["item"]))
    elif positional:
        positional = (unview(value, port["view"], positional[0]), *positional[1:])
    else:
        keywords = {**keywords, port["item"]: unview(value, port["view"], keywords[port["item"]])}
    envoy.inputs = (positional, keywords)


def first(positional: tuple[Tensor, ...], keywords: Mapping[str, Any], name: str) -> Shaped[Tensor, "..."]:
    return positional[0] if positional else keywords[name]


def view(value: Shaped[Tensor, "*where width"], kind: Heads | Part) -> Shaped[Tensor, "*where head dimension"]:
    """Heads apart, or one part of a fused projection."""
    if kind[0] == "heads":
        return value.unflatten(-1, (-1, kind[1]))
    return value.chunk(kind[2], dim=-1)[kind[1]].unflatten(-1, (-1, kind[3]))


def unview(value: Shaped[Tensor, "..."], kind: View | None, before: Any) -> Shaped[Tensor, "..."]:
    if kind is None:
        return value
    if kind[0] == "heads":
        return value.flatten(-2)
    if kind[0] == "rows":
        return value.flatten(0, 1)
    if kind[0] == "part":
        parts = list(before.chunk(kind[2], dim=-1))
        parts[kind[1]] = value.flatten(-2)
        return torch.cat(parts, dim=-1)
    if before is None or before.dtype == torch.bool:
        return value[:, None]
    return torch.where(value[:, None], torch.zeros_like(before), torch.finfo(before.dtype).min)


def allowed(mask: Shaped[Tensor, "row 1 query key"] | None, held: Any, layer: Layer) -> Bool[Tensor, "row query key"]:
    """The mask that an attention layer was given as bool `[rows, queries, keys]`; None means causal."""
    positional, keywords = held
    hidden = first(positional, keywords, "hidden_states")
    rows, queries = hidden.shape[:2]
    if mask is not None:
        open_ = mask if mask.dtype == torch.bool else mask >= 0
        return open_[:, 0].expand(rows, -1, -1)
    cache = keywords.get("past_key_values")
    past = 0 if cache is None else cache.get_seq_length(layer)
    everything = torch.ones(queries, past + queries, dtype=torch.bool, device=hidden.device)
    return everything.tril(past).expand(rows, -1, -1)
