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
    held = envoy.output if port["at"] == "output" else envoy.inputs
    return held, see(own(held, port), port["view"], seeing(held, layer, context))


def put(envoy: Module, port: Port, held: Any, value: Shaped[Tensor, "..."], layer: Layer, context: Context) -> None:
    """Write the site's view back where it came from."""
    hand_back(envoy, port, with_value(port, held, value, layer, context))


def with_value(port: Port, held: Any, value: Shaped[Tensor, "..."], layer: Layer, context: Context) -> Any:
    """What the module held at a port, with the site's view in its place."""
    return with_own(port, held, unsee(value, port["view"], own(held, port), seeing(held, layer, context)))


def own(held: Any, port: Port) -> Shaped[Tensor, "..."]:
    """The module's own value among all that it holds at a port."""
    if port["at"] == "output":
        return held if port["item"] is None else held[port["item"]]
    positional, keywords = held
    return keywords.get(port["item"]) if port["at"] == "keyword" else first(positional, keywords, port["item"])


def with_own(port: Port, held: Any, value: Shaped[Tensor, "..."]) -> Any:
    """What the module held at a port, with another value in the place of its own."""
    item = port["item"]
    if port["at"] == "output":
        if item is None:
            return value
        if isinstance(held, tuple):
            return (*held[:item], value, *held[item + 1 :])
        return type(held)(**{**held, item: value})
    positional, keywords = held
    if port["at"] == "keyword" or not positional:
        return positional, {**keywords, item: value}
    return (value, *positional[1:]), keywords


def hand_back(envoy: Module, port: Port, whole: Any) -> None:
    """Let the model go on with all that a module holds at a port."""
    if port["at"] == "output":
        envoy.output = whole
    else:
        envoy.inputs = whole


def seeing(held: Any, layer: Layer, context: Context) -> Seeing:
    """What the steps of a view need to know of the batch under way."""
    order = context["fields"].get("vision", {}).get("order")
    return {"held": held, "layer": layer, "rows": context["rows"] * context["beams"], "order": order}


def first(positional: tuple[Tensor, ...], keywords: Mapping[str, Any], name: str) -> Shaped[Tensor, "..."]:
    return positional[0] if positional else keywords[name]
