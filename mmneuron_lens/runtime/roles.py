"""Roles: that queries, keys, values and positions are what they are called, by what a change at one position moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from interventions import Graph, Intervention, keep, writes
from mmneuron_lens.artifacts.certificate import Comparison
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.agreement import compare, require
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.run import run

Spot = tuple[int, int]
"""A row (or tile) and a position in it."""

LINKS = (
    ("llm.embedding", None, ("llm.attention.q", "llm.attention.k", "llm.attention.v"), 0),
    ("llm.attention.z", 0, ("llm.attention.out",), 0),
    ("llm.attention.out", 0, ("llm.mlp.act", "llm.mlp.post", "llm.mlp.out", "llm.residual"), 0),
    ("vision.attention.z", 0, ("vision.attention.out",), 0),
    ("vision.attention.out", 0, ("vision.mlp.act", "vision.mlp.post", "vision.residual"), 0),
    ("vision.residual", 0, ("vision.attention.q", "vision.attention.k", "vision.attention.v"), 1),
)
"""Sites, with their layers, of which a position depends on the same position of another alone."""


@writes("*")
def shift_at(value: Tensor, row: int, position: int) -> Tensor:
    """A change at one position of one row that a normalisation does not undo."""
    changed = value.clone()
    flat = changed[row, position].flatten()
    flat[::2] += 1 + value[row, position].abs().mean()
    changed[row, position] = flat.view(changed[row, position].shape)
    return changed


@writes("*")
def doubled(value: Tensor) -> Tensor:
    """Twice the value."""
    return 2 * value


def prove_roles(model: Model, batch: Batch, read: Sequence[str]) -> list[Comparison]:
    """Compare what a change at one position moves with what it must move.

    - read: sites that the batch reaches

    In the first layers: a query changes what its own position is given, a key what others are given, outputs of heads
    grow with values, and everything else keeps to its position, the projector to the one that its patch becomes.
    Returns what was compared. Raises `ProofFailed` naming the site that does something else.
    """
    made: list[Comparison] = []
    for group in ("vision", "llm"):
        spots = _spots(batch, group) if any(site.startswith(f"{group}.") for site in read) else []
        for spot in spots:
            for source, layer, targets, behind in LINKS:
                there = [site for site in targets if site in read and _has(model, site, behind)]
                if source.startswith(f"{group}.") and source in read and there:
                    _prove_position(model, batch, (source, layer), spot, there, behind)
        if spots and group == "vision":
            _prove_merged(model, batch, spots, read)
        if spots and {f"{group}.attention.{letter}" for letter in "qkvz"} <= set(read):
            apart = _prove_heads(model, batch, group, spots[0])
            made.append(Comparison(f"what queries, keys and values do in the first layer of {group}", apart))
    return made


def prove_sums(model: Model, first: Mapping[str, Tensor]) -> list[Comparison]:
    """Compare what the first layer of the language model adds with what its residual stream gains, and what the final
    norm returns with what the unembedding is given.

    - first: by site, the value at the first layer

    Raises `ProofFailed` where these lie further apart than rounding.
    """
    before, attention, mlp, after = (
        first[f"llm.{name}"] for name in ("embedding", "attention.out", "mlp.out", "residual")
    )
    said = "llm.attention.out and llm.mlp.out are not what llm.residual gains in the first layer"
    apart = compare(before + attention + mlp, after, model.dtype, said)
    made = [Comparison("what the first layer of llm adds and what the residual stream gains", apart)]
    apart = compare(first["llm.norm"], first["llm.unembed"], model.dtype, "llm.norm is not what llm.unembed is given")
    return [*made, Comparison("what the final norm returns and what the unembedding is given", apart)]


def _prove_heads(model: Model, batch: Batch, group: str, spot: Spot) -> float:
    output = [f"{group}.attention.z"]
    row, position = spot
    others = {one for one in _real(batch, group) if one[0] == row} - {spot}
    for letter in "qk":
        site = f"{group}.attention.{letter}"
        moved = _moved(model, batch, shift_at.bind(row=row, position=position).at(site, layers=0), output, 0)[output[0]]
        said = f"{site}: changed at position {position}, it moved heads' outputs at {_some(moved)}"
        if letter == "q":
            require(moved == {spot}, f"{said}; a query moves its own alone")
        else:
            require(bool(moved & others), f"{said}; a key moves those of other positions")
    site = f"{group}.attention.v"
    before = _values(model, batch, Graph(), output, 0)[output[0]]
    after = _values(model, batch, Graph((doubled.at(site, layers=0),)), output, 0)[output[0]]
    return compare(after, 2 * before, model.dtype, f"{site}: twice these are not twice the heads' outputs")


def _prove_position(
    model: Model, batch: Batch, source: tuple[str, int | None], spot: Spot, targets: list[str], layer: int
) -> None:
    site, own = source
    change = shift_at.bind(row=spot[0], position=spot[1])
    change = change.at(site) if own is None else change.at(site, layers=own)
    for target, moved in _moved(model, batch, change, targets, layer).items():
        # In a layer whose attention and MLP are beside each other, none moves the other.
        right = moved == {spot} or (not moved and ".mlp." in target)
        require(right, f"{site}: changed at position {spot[1]}, it moved {target} at {_some(moved)}, not there")


def _prove_merged(model: Model, batch: Batch, spots: Sequence[Spot], read: Sequence[str]) -> None:
    """What the projector makes of one patch behind the last layer that it reads."""
    targets = [site for site in ("projector.act", "projector.output") if site in read]
    if not targets or batch.facts["queries"] or "vision.residual" not in read:
        return
    place, facts = model.architecture.place("vision.residual"), batch.facts
    last = max(layer for layer, _ in place.paths() if layer is not None and place.reaches(layer))
    for row, position in spots:
        change = shift_at.bind(row=row, position=position).at("vision.residual", layers=last)
        for target, moved in _moved(model, batch, change, targets, None).items():
            said = f"vision.residual: changed at patch {position}, it moved {target} at {_some(moved)}"
            require([one for one, _ in moved] == [row], f"{said}, not at one position of its tile")
            if facts["tiling"] == "grid" or facts["merged"] == 1:
                own = (position - facts["cls"]) // facts["merged"]
                require(moved == {(row, own)}, f"{said}, not at {own}")


def _spots(batch: Batch, group: str) -> list[Spot]:
    """Positions to change: one in the middle, and one that the tower holds elsewhere; none where there are too few."""
    real = _real(batch, group)
    row = max({row for row, _ in real}, key=lambda row: sum(one == row for one, _ in real))
    columns = sorted(column for one, column in real if one == row)
    found = [columns[len(columns) // 2]] if len(columns) > 2 else []
    order = batch.fields[group].get("order")
    if order is not None:
        merged = batch.facts["merged"]
        places: list[int] = order[row].argsort().tolist()
        found += [column for column, place in enumerate(places) if column // merged != place // merged][:1]
    return [(row, column) for column in dict.fromkeys(found)]


def _real(batch: Batch, group: str) -> set[Spot]:
    places: list[list[int]] = batch.fields[group]["weight"].nonzero().tolist()
    return {(row, column) for row, column in places}


def _moved(
    model: Model, batch: Batch, change: Intervention, sites: Sequence[str], layer: int | None
) -> dict[str, set[Spot]]:
    """By site, where a change moved its value; padding aside in the language model."""
    before = _values(model, batch, Graph(), sites, layer)
    after = _values(model, batch, Graph((change,)), sites, layer)
    made: dict[str, set[Spot]] = {}
    for site in sites:
        places: list[list[int]] = (after[site] != before[site]).flatten(2).any(-1).nonzero().tolist()
        made[site] = {(row, column) for row, column in places}
        if site.startswith("llm."):
            made[site] &= _real(batch, "llm")
    return made


def _values(model: Model, batch: Batch, changes: Graph, sites: Sequence[str], layer: int | None) -> dict[str, Tensor]:
    """Each site's value, at one layer where it has layers."""
    out = run(model, changes | (keep.at(list(sites)) if layer is None else keep.at(list(sites), layers=layer)), [batch])
    found: dict[str, Any] = {site: out[keep.name, site][0] for site in sites}
    return {site: value if layer is None else value[0] for site, value in found.items()}


def _has(model: Model, site: str, layer: int) -> bool:
    """Whether a site has this layer, and it is used."""
    place = model.architecture.place(site)
    return layer < (place.layers or 0) and place.reaches(layer)


def _some(spots: set[Spot]) -> str:
    shown = [str(column) for _, column in sorted(spots)]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "") if shown else "none"
