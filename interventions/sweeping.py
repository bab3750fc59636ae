"""Sweeps: one intervention at many places, a graph each, as the heat map of activation patching asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast, overload

import torch
from jaxtyping import Shaped
from torch import Tensor

from interventions.errors import InvalidType, InvalidValue
from interventions.graph import Graph, Intervention
from interventions.narrowing import checked_layers, checked_positions

Layers: TypeAlias = int | Iterable[int]
"""A layer, or several that are taken together."""

Places: TypeAlias = int | str | slice | Iterable[int]
"""A position, a kind, a slice, or several positions that are taken together."""


@dataclass(frozen=True)
class Sweep(Sequence[Graph]):
    """The graphs of a sweep, layer by layer, and in each position by position. Made by `sweep`; `|` joins to each.

    - graphs: in row-major order of layer and position.
    - layers, positions: what was swept over; None for an axis that was left out.
    """

    graphs: tuple[Graph, ...]
    layers: tuple[Any, ...] | None
    positions: tuple[Any, ...] | None

    @overload
    def __getitem__(self, index: int) -> Graph: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Graph]: ...
    def __getitem__(self, index: int | slice) -> Graph | Sequence[Graph]:
        return self.graphs[index]

    def __len__(self) -> int:
        return len(self.graphs)

    def __or__(self, other: Intervention | Graph) -> Sweep:
        return Sweep(tuple(graph | other for graph in self.graphs), self.layers, self.positions)

    @property
    def shape(self) -> tuple[int, ...]:
        """How long its axes are: layers, then positions."""
        return tuple(len(axis) for axis in (self.layers, self.positions) if axis is not None)

    def grid(self, results: Sequence[Any], key: str | tuple[str, str]) -> Shaped[Tensor, "*grid ..."]:
        """One read of every graph, `[layer, position, ...]`, without an axis that was left out.

        - results: what `lens.run(sweep, batches)` returned.
        - key: of the read, as in `out[key]`. Of a read that lists batches, their items one behind the other.

        Raises:

        - `InvalidValue`: for another number of results, or a read whose tensors differ in shape.
        - `InvalidType`: for a read that returns no tensor.
        """
        if len(results) != len(self):
            raise InvalidValue(f"{len(results)} results for the {len(self)} graphs of this sweep; give them all.")
        values = [_tensor(result[key], key) for result in results]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            shown = ", ".join(str(list(shape)) for shape in sorted(shapes))
            raise InvalidValue(f"{key!r} has another shape in some places ({shown}), so it makes no grid.")
        return torch.stack(values).reshape(*self.shape, *values[0].shape)

    def __repr__(self) -> str:
        sizes = [
            f"{len(axis)} {name}"
            for name, axis in (("layers", self.layers), ("positions", self.positions))
            if axis is not None
        ]
        return f"Sweep of {len(self)} graphs ({' x '.join(sizes) or 'one place'}), the first:\n{self.graphs[0]!r}"


def sweep(
    intervention: Intervention, *, layers: Iterable[Layers] | None = None, positions: Iterable[Places] | None = None
) -> Sweep:
    """The same intervention at every layer and position of a grid, a graph each: what `lens.run` takes as several.

    - intervention: of any mode; a read that measures what comes of it is joined with `|`.
    - layers: one of a graph each, or several that are patched together; left out, it acts where it is narrowed to.
    - positions: likewise, each as `at` takes it: an index, a kind, a slice, or several indices.

    Raises:

    - `InvalidType`: for what is no intervention.
    - `InvalidValue`: for an axis with nothing on it, and what `at` raises.
    """
    if not isinstance(cast(object, intervention), Intervention):
        raise InvalidType(f"sweep takes an intervention, not {type(intervention).__name__}; join others to the sweep.")
    rows = _axis("layers", layers)
    columns = _axis("positions", positions)
    graphs = tuple(
        Graph((intervention.at(layers=layer, positions=position),))
        for layer in (rows if rows is not None else (None,))
        for position in (columns if columns is not None else (None,))
    )
    mode = intervention.mode == "reads"
    layered = None if rows is None else tuple(_one(checked_layers(layer, mode)) for layer in rows)
    placed = None if columns is None else tuple(_one(checked_positions(position)) for position in columns)
    return Sweep(graphs, layered, placed)


def _axis(name: str, values: Iterable[Any] | None) -> tuple[Any, ...] | None:
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(cast(object, values), Iterable):
        raise InvalidType(f"sweep: {name} is a list with an item per graph, not {values!r}; write {name}=[{values!r}].")
    found = tuple(values)
    if not found:
        raise InvalidValue(f"sweep: {name}=[] names nothing; leave it out to sweep over the other axis alone.")
    return found


def _one(value: Any) -> Any:
    """An index by itself, rather than as a tuple of one."""
    several: tuple[Any, ...] = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
    return several[0] if len(several) == 1 else several


def _tensor(value: Any, key: object) -> Tensor:
    parts = cast("list[Any]", value) if isinstance(value, list) else [value]
    for part in parts:
        if not isinstance(part, Tensor):
            raise InvalidType(f"{key!r} is {type(part).__name__}, not a tensor, so it makes no grid.")
    return parts[0] if len(parts) == 1 else torch.cat(parts)
