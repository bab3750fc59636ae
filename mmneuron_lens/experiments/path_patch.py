"""Path patching: the direct path from one head or MLP to a later one, or to the logits (arXiv 2211.00593).

The sender is taken from the source batch, the receiver sees that through the residual stream alone, every component
between is as in the clean run, and all behind the receiver follows it. Two clean runs and one of the source; what
comes back is a graph that goes on: it can be read, generated from, or joined with others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interventions import (
    Graph,
    Intervention,
    add_difference,
    keep,
    patch_heads,
    put_heads,
    put_values,
)
from interventions.errors import InvalidType, InvalidValue, OutOfRange, UnknownName
from interventions.sites import unknown
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch

SENDERS = ("llm.attention.z", "llm.attention.out", "llm.mlp.out")
RECEIVERS = ("llm.attention.q", "llm.attention.k", "llm.attention.v", "llm.mlp.out")


class Component(NamedTuple):
    """A part of the language model: `Component("llm.attention.z", 3, head=5)`, `Component("llm.mlp.out", 4)`.

    - site: a sender's is of `SENDERS`, a receiver's of `RECEIVERS`; a head is one of `z`, `q`, `k` or `v`
    - layer: from 0
    - head: at `z`, `q`, `k` and `v`; None elsewhere
    """

    site: str
    layer: int
    head: int | None = None


@dataclass(frozen=True, eq=False)
class PatchedPath:
    """A path that is patched: `lens.run(path.graph | reads, path.batch, logits=True)`.

    - graph: the write that puts the path's effect into the clean run; narrowed to the prompt
    - batch: the clean batch, with what the write needs as a field
    """

    graph: Intervention
    batch: Batch


def patch_path(
    lens: Lens, clean: Batch, source: Batch, sender: Component, receiver: Component | None = None
) -> PatchedPath:
    """Patch the direct path from a sender to a receiver, or to the logits.

    - clean: the batch that is run
    - source: its pair, from which the sender is taken; as many rows, and prompts and images of equal length
    - sender: a head's or an attention's or an MLP's output
    - receiver: the query, key or value of a head, or an MLP; the logits if left out

    Raises `UnknownName` for another site, `OutOfRange` for a layer or head that is not there, `InvalidType` for a head
    too few or too many, `InvalidValue` for a receiver that does not come after the sender, and what `lens.run` raises.
    """
    _check(lens, sender, SENDERS)
    if receiver is not None:
        _check(lens, receiver, RECEIVERS)
        _check_order(sender, receiver)
    difference = _difference(lens, clean, source, sender)
    sent = clean.with_fields(difference=difference)
    if receiver is None:
        return PatchedPath(add_difference.at("llm.residual", layers=-1, steps="prompt"), sent)
    if receiver.site == "llm.mlp.out":
        # What attention adds in this layer is the last thing before the MLP reads the stream.
        added = add_difference.at("llm.attention.out", layers=receiver.layer, steps="prompt")
    else:
        added = add_difference.at("llm.residual", layers=receiver.layer - 1, steps="prompt")
    received = _kept(lens, added | keep.at(receiver.site, layers=receiver.layer), sent, receiver.site)
    put = put_values if receiver.head is None else put_heads.bind(heads=_heads(lens, receiver))
    return PatchedPath(put.at(receiver.site, layers=receiver.layer, steps="prompt"), clean.with_fields(given=received))


def _difference(lens: Lens, clean: Batch, source: Batch, sender: Component) -> Float[Tensor, "row token hidden"]:
    """What the patched sender adds to the residual stream, less what it adds in the clean run."""
    out = "llm.mlp.out" if sender.site == "llm.mlp.out" else "llm.attention.out"
    read = keep.at(out, layers=sender.layer)
    before = _kept(lens, read, clean, out)
    if sender.head is None:
        after = _kept(lens, read, source, out)
    else:
        patch = patch_heads.bind(heads=_heads(lens, sender)).at(layers=sender.layer)
        after = _kept(lens, patch | read, clean, out, source)
    if before.shape != after.shape:
        raise InvalidValue(
            f"The source batch has shape {list(after.shape)} at {out} and the clean one {list(before.shape)}; encode "
            "both with as many rows, and prompts and images of equal length."
        )
    return after - before


def _kept(lens: Lens, graph: Graph | Intervention, batch: Batch, site: str, source: Batch | None = None) -> Tensor:
    out = lens.run(graph, batch, sources=source)
    return out["keep", site][0][0].to(batch.inputs["input_ids"].device)


def _heads(lens: Lens, component: Component) -> Bool[Tensor, " head"]:
    marked = torch.zeros(lens.architecture.place(component.site).sizes["head"], dtype=torch.bool, device="cpu")
    marked[component.head] = True
    return marked


def _check(lens: Lens, component: Component, sites: tuple[str, ...]) -> None:
    site, layer, head = component
    if site not in sites:
        raise UnknownName(unknown("site of a path's end", site, sites))
    place = lens.architecture.place(site)
    if not 0 <= layer < (place.layers or 0):
        raise OutOfRange(f"There is no layer {layer} at {site}; there are 0 to {(place.layers or 0) - 1}.")
    number = place.sizes.get("head")
    if (head is None) == (number is not None):
        raise InvalidType(f"{site} is {'one value for each head; name one, head=0' if number else 'of no one head'}.")
    if head is not None and not 0 <= head < (number or 0):
        raise OutOfRange(f"There is no head {head} at {site}; there are 0 to {(number or 0) - 1}.")


def _check_order(sender: Component, receiver: Component) -> None:
    # Attention of a layer comes before its MLP.
    first, second = ((one.layer, one.site == "llm.mlp.out") for one in (sender, receiver))
    if first >= second:
        raise InvalidValue(
            f"{receiver.site} of layer {receiver.layer} does not come after {sender.site} of layer {sender.layer}, so "
            "no path leads there; choose a later receiver."
        )
