"""Returned: what a job sent back, checked against what was asked before anything is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from interventions.errors import InvalidType
from mmneuron_lens.runtime.folding import kind_of
from mmneuron_lens.runtime.forms import Forms, misfits
from mmneuron_lens.runtime.transport import WHOSE, RemoteFailed
from mmneuron_lens.wire.types import Key, Over, Returned, Served


def checked_returned(
    returned: Any, overs: Mapping[Key, Over], batches: int | None, host: str, forms: Mapping[Key, Forms] | None = None
) -> Returned:
    """Results by name, answers and logits, as `wire.job.run_job` returns them.

    - overs: the results that were asked for
    - batches: how many were sent; None where that is not known any more
    - host: that is named in the message
    - forms: of results, as far as they are known before

    Raises `RemoteFailed` where a part is missing, is too much, or is of another kind.
    """
    parts = {"values": dict, "answers": list, "logits": list}
    if not isinstance(returned, dict) or set(returned) != set(parts):
        raise RemoteFailed(f"{host}: a job came back without its results; {WHOSE}.")
    for name, kind in parts.items():
        if not isinstance(returned[name], kind):
            raise RemoteFailed(f"{host}: {name} came back as {type(returned[name]).__name__}; {WHOSE}.")
    values = returned["values"]
    asked = set() if batches == 0 else set(overs)
    if set(values) != asked:
        named = sorted(f"{name} at {site}" for name, site in asked - set(values))
        more = f"with {len(set(values) - asked)} results that nobody asked for"
        what = f"without {', '.join(named)}" if named else more
        raise RemoteFailed(f"{host}: a job came back {what}; {WHOSE}.")
    for (name, site), value in values.items():
        over = overs[name, site]
        if not isinstance(over, str) and not _is_by_layer(value, isinstance(over, dict)):
            raise RemoteFailed(f"{host}: {name} at {site} came back without a partial result per layer; {WHOSE}.")
        fits = {"list": list, "mean": tuple}.get(over) if isinstance(over, str) else None
        if fits is not None and not isinstance(value, fits):
            raise RemoteFailed(f"{host}: {name} at {site} came back as {type(value).__name__}; {WHOSE}.")
        if overs[name, site] == "mean" and len(value) != 2:
            raise RemoteFailed(f"{host}: {name} at {site} came back without sum and weight; {WHOSE}.")
        if overs[name, site] == "list" and batches is not None and len(value) != batches:
            raise RemoteFailed(f"{host}: {name} at {site} came back for {len(value)} of {batches} batches; {WHOSE}.")
        if says := misfits(value, (forms or {}).get((name, site))):
            raise RemoteFailed(f"{host}: {name} at {site} came back as {says}; {WHOSE}.")
    if not all(isinstance(one, Tensor) for one in (*returned["answers"], *returned["logits"])):
        raise RemoteFailed(f"{host}: answers or logits came back that are no tensors; {WHOSE}.")
    return cast(Returned, returned)


def _is_by_layer(value: Any, stacked: bool) -> bool:
    """Whether it is what a function folds: by layer, or once, tensors or dicts or tuples of them, all of one kind.

    stacked: of a fold of ours, which may be by several layers that are stacked.
    """
    if not isinstance(value, dict) or not value:
        return False
    layers = cast("dict[Any, Any]", value)
    try:
        kinds = {kind_of(one) for one in layers.values()}
    except InvalidType:
        return False
    several = stacked and all(type(at) is tuple for at in layers)
    return len(kinds) == 1 and (set(layers) == {None} or several or all(type(layer) is int for layer in layers))


def checked_served(said: Any, host: str) -> Served:
    """What a server says of its model. Raises `RemoteFailed` where it is not device and weights."""
    names = {"name": str, "shape": list, "dtype": str}
    good = isinstance(said, dict) and isinstance(said.get("device"), str) and isinstance(said.get("weights"), list)
    if not good or not all(
        isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in names.items())
        for one in said["weights"]
    ):
        raise RemoteFailed(f"{host}: what it says of the model's weights cannot be read; {WHOSE}.")
    return cast(Served, said)
