"""Ports: a site's value read from where its module holds it, in the site's own axes, and written back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from mmneuron_lens.wire.facts_types import Layer, Port, Seeing
from mmneuron_lens.wire.types import Context, Module
from mmneuron_lens.wire.views import see, unsee


def take(envoy: Module, port: Port, layer: Layer, context: Context) -> tuple[Any, Shaped[Tensor, "..."]]:
    """What the module holds at a port, and the site's view of it."""
    if port["at"] == "output":
        held = envoy.output
        value = held if port["item"] is None else held[port["item"]]
    else:
        held = envoy.inputs
        positional, keywords = held
        value = keywords.get(port["item"]) if port["at"] == "keyword" else first(positional, keywords, port["item"])
    return held, see(value, port["view"], seeing(held, layer, context))


def put(envoy: Module, port: Port, held: Any, value: Shaped[Tensor, "..."], layer: Layer, context: Context) -> None:
    """Write the site's view back where it came from."""
    whole = with_value(port, held, value, layer, context)
    if port["at"] == "output":
        envoy.output = whole
    else:
        envoy.inputs = whole


def with_value(port: Port, held: Any, value: Shaped[Tensor, "..."], layer: Layer, context: Context) -> Any:
    """What the module held at a port, with the site's view in its place."""
    item, how = port["item"], seeing(held, layer, context)
    if port["at"] == "output":
        if item is None:
            return unsee(value, port["view"], held, how)
        if isinstance(held, tuple):
            whole = list(held)
            whole[item] = unsee(value, port["view"], held[item], how)
            return tuple(whole)
        whole = held.copy()
        whole[item] = unsee(value, port["view"], held[item], how)
        return type(held)(**whole)
    positional, keywords = held
    if port["at"] == "keyword":
        keywords = dict(keywords)
        keywords[item] = unsee(value, port["view"], keywords.get(item), how)
    elif positional:
        positional = (unsee(value, port["view"], positional[0], how), *positional[1:])
    else:
        keywords = {**keywords, item: unsee(value, port["view"], keywords[item], how)}
    return positional, keywords


def seeing(held: Any, layer: Layer, context: Context) -> Seeing:
    """What the steps of a view need to know of the batch under way."""
    order = context["fields"].get("vision", {}).get("order")
    return {"held": held, "layer": layer, "rows": context["rows"] * context["beams"], "order": order}


def first(positional: tuple[Tensor, ...], keywords: Mapping[str, Any], name: str) -> Shaped[Tensor, "..."]:
    return positional[0] if positional else keywords[name]
