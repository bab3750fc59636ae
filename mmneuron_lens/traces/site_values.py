"""Site values: what a graph reads at a site, read and written inside an nnsight trace. These functions travel."""

from __future__ import annotations

from functools import partial
from typing import Any, TypedDict

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmneuron_lens.wire.beside import nothing_beside
from mmneuron_lens.wire.facts_types import Layer, Port
from mmneuron_lens.wire.ports import take, with_value
from mmneuron_lens.wire.types import Context
from mmneuron_lens.wire.views import windowed_order


class Spot(TypedDict):
    """A site at one layer.

    - shown: how a user writes it
    - fixed: why it cannot be written, "" where it can
    - windows: of the architecture's facts
    """

    site: str
    layer: Layer
    shown: str
    port: Port
    fixed: str
    windows: dict[str, int]


def read_value(envoy: Any, spot: Spot) -> Shaped[Tensor, "..."]:
    """The value of a site in the pass under way, in the site's own axes.

    What is done to it in place before the block asks for another value is what the model goes on with. A view is put
    back in the model's own layout, so that it lies on the path of the forward and has a gradient. Raises `ValueError`
    outside a trace, and where the view needs to know more than the trace does.
    """
    from nnsight.intervention.eproperty import WriteBack

    mediator, location = worker_at(envoy, spot)
    place = (spot["shown"], location, mediator.wanted(location))
    waiting = mediator.transform
    if waiting is not None and waiting.key == place:
        return waiting.view
    context = context_of(mediator, spot)
    held, value = take(envoy, spot["port"], spot["layer"], context)
    if value.dtype == torch.bool:
        # One mask may be that of all layers.
        value = value.clone()
    if spot["port"]["view"] or spot["fixed"]:
        back = partial(put_back, spot, held, value, edits_of(value), context)
        mediator.transform = WriteBack(back, value, *place)
    return value


def write_value(envoy: Any, spot: Spot, new: Shaped[Tensor, "..."]) -> None:
    """Put a value of the same shape at a site. Raises `ValueError` for what is none, or a site that is read only."""
    refuse_fixed(spot)
    mediator, location = worker_at(envoy, spot)
    context = context_of(mediator, spot)
    held, value = take(envoy, spot["port"], spot["layer"], context)
    if not isinstance(new, torch.Tensor) or new.shape != value.shape:
        got = list(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
        raise ValueError(f"{spot['shown']}.value is a tensor {list(value.shape)}, not {got}.")
    whole = with_value(spot["port"], held, new.to(value), spot["layer"], context)
    if location.endswith(".output"):
        envoy.output = whole
    else:
        envoy.inputs = whole


def put_back(spot: Spot, held: Any, value: Shaped[Tensor, "..."], edits: int | None, context: Context) -> Any:
    """What the module goes on with once the block moves on: what it held, unless a view was edited or has a graph."""
    edited = edits is None or value._version != edits
    if edited and edits is not None:
        refuse_fixed(spot)
    if spot["fixed"] or not (edited or value.requires_grad):
        return held
    return with_value(spot["port"], held, value, spot["layer"], context)


def edits_of(value: Shaped[Tensor, "..."]) -> int | None:
    """How often a tensor was edited in place; None where torch does not count."""
    return None if value.is_inference() else value._version


def refuse_fixed(spot: Spot) -> None:
    """Raise `ValueError` for a site that is read only."""
    if spot["fixed"]:
        raise ValueError(f"{spot['shown']}.value cannot be written: {spot['fixed']}.")


def worker_at(envoy: Any, spot: Spot) -> tuple[Any, str]:
    """nnsight's worker that runs the block, and the location it asks for. Raises `ValueError` where there is none."""
    from nnsight.intervention.interleaver import Mediator

    location = f"{envoy.path}.{'output' if spot['port']['at'] == 'output' else 'input'}"
    try:
        mediator = Mediator.current(location)
    except ValueError:
        raise ValueError(
            f"{spot['shown']}.value exists while the model runs: write it inside `with lens.trace(batch):` or "
            "`with tracer.invoke(**batch.inputs):`."
        ) from None
    if mediator.interleaver is not envoy.interleaver:
        raise ValueError(
            f"{spot['shown']}.value is of the forward: read it before `with loss.backward():`, and its .grad inside."
        )
    return mediator, location


def context_of(mediator: Any, spot: Spot) -> Context:
    """What a view needs to know, from the inputs of the pass under way."""
    batcher = mediator.interleaver.batcher
    steps = {step[0] for step in spot["port"]["view"]}
    if batcher.batching and mediator.batch_group is not None and steps & {"rows", "packed", "ordered"}:
        raise ValueError(
            f"{spot['shown']}.value has the rows of all invokes in one; give the model one batch, "
            "`with lens.trace(batch):`."
        )
    given = dict(batcher.kwargs)
    for _, keywords in batcher.invokes:
        given.update(keywords)
    given.update(batcher.extra_kwargs)
    fields = {}
    if "ordered" in steps:
        if given.get("image_grid_thw") is None:
            raise ValueError(
                f"{spot['shown']}.value needs to know the order of patches; write `with lens.trace(batch):` or "
                "`with tracer.invoke(**batch.inputs):`."
            )
        fields = {"vision": {"order": windowed_order(given["image_grid_thw"], spot["windows"])[None]}}
    return {
        "fields": fields,
        "rows": batcher.total,
        "beams": max(given.get("num_beams") or 1, given.get("num_return_sequences") or 1),
        "sources": {},
        "beside": nothing_beside([]),
        "columns": None,
        "prompt_length": 0,
        "sharing": {},
        "tower": {"axis": 0, "counts": []},
    }
