"""Checks of counts that a server sent, against the batches that it was sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from interventions.errors import InvalidValue
from interventions.sites import SITES
from mmneuron_lens.artifacts.moments import check_moments
from mmneuron_lens.batching.gather import Piece
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.transport import WHOSE, RemoteFailed


def positions_in(batches: Iterable[Batch]) -> dict[str, list[int]]:
    """By group of sites, how many positions of each kind the batches have, as often as each counts."""
    total: dict[str, list[int]] = {}
    for batch in batches:
        for group, fields in batch.fields.items():
            found = (fields["weight"][..., None] * fields["kind"]).flatten(0, -2).sum(0).tolist()
            total[group] = [one + other for one, other in zip(total.get(group, [0] * len(found)), found, strict=True)]
    return total


def moments_at(tensors: Mapping[str, Tensor], site: str) -> dict[str, Tensor]:
    """What a piece holds of a site by the names of `Moments`, which calls `positive` what counts call `active`."""
    held = {name.removesuffix(f"/{site}"): value for name, value in tensors.items() if name.endswith(f"/{site}")}
    return {"positive" if name == "active" else name: value for name, value in held.items()}


def refuse_impossible(piece: Piece, positions: Mapping[str, Any], host: object) -> Piece:
    """The piece itself, if its counts can be those of so many positions.

    - positions: as `positions_in` gives them
    - host: that is named in the message

    Raises `RemoteFailed` for other totals, or a neuron that is active less than never or more often than there are
    positions.
    """
    for name, active in piece.tensors.items():
        kind, _, site = name.partition("/")
        if kind != "active":
            continue
        tokens = piece.tensors[f"tokens/{site}"]
        asked = list(positions.get(SITES[site].group or "", ()))[: len(tokens)]
        if tokens.tolist() != asked:
            raise RemoteFailed(f"{host}: {site} was counted over {tokens.tolist()} positions, not {asked}; {WHOSE}.")
        if bool(((active < 0) | (active > tokens[None, :, None])).any()):
            raise RemoteFailed(f"{host}: neurons at {site} are active more often than there are positions; {WHOSE}.")
        if f"sums/{site}" in piece.tensors:
            try:
                check_moments(site, moments_at(piece.tensors, site))
            except InvalidValue as error:
                raise RemoteFailed(f"{host}: what was read cannot be: {error}; {WHOSE}.") from None
    return piece
