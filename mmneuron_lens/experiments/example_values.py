"""Example values: the activations of the examples that one batch holds, at every position of their questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions import Graph, per_layer, sample_activations
from mmneuron_lens.experiments.best_examples import BestExamples
from mmneuron_lens.experiments.pictured_row import PicturedRows
from mmneuron_lens.lens import Lens

CELLS = 2**26
"""Activations of one site that are held at a time: 256 MiB in float32."""


@dataclass(frozen=True, eq=False)
class ByNumber:
    """The examples of one site, found by the number of their question."""

    best: BestExamples
    site: str

    @cached_property
    def order(self) -> Int[Tensor, " example"]:
        """Places among all [neuron, k], by the number of the question; absent ones first."""
        return self.best.sample[self.site].flatten().sort(stable=True).indices

    @cached_property
    def numbers(self) -> Int[Tensor, " example"]:
        """The number of the question of each, in that order."""
        return self.best.sample[self.site].flatten()[self.order]

    def of(self, numbers: Sequence[int]) -> Int[Tensor, " example"]:
        """Places among all [neuron, k] of the examples that are these questions, question by question."""
        edges = torch.tensor([[one, one + 1] for one in numbers], dtype=torch.int64, device="cpu").view(-1, 2)
        bounds: list[list[int]] = torch.searchsorted(self.numbers, edges).tolist()
        return torch.cat([self.order[start:stop] for start, stop in bounds] or [self.order[:0]])


@dataclass(frozen=True, eq=False)
class Pairs:
    """What is read at one site of one batch: neurons and samples in columns, as many in every layer.

    - place: int64 [pair], among all [neuron, k]. layer, column: int64 [pair], where it stands in the tables.
    - neurons, samples: int64 [layer, column]; sample -1 where a layer has fewer pairs.
    - width: positions that a question of the batch has at most.
    """

    place: Tensor
    layer: Tensor
    column: Tensor
    neurons: Tensor
    samples: Tensor
    width: int


def example_values(
    lens: Lens, rows: PicturedRows, examples: Mapping[str, ByNumber], own: Sequence[int]
) -> dict[str, tuple[Int[Tensor, " pair"], Float[Tensor, "pair width"]]]:
    """By site the places among all [neuron, k] of the examples of a batch, and their activations at every position.

    - own: the numbers of the batch's questions. One forward, or several where a site has more than `CELLS`.
    """
    pairs = {site: pairs_of(lens, rows, one, own) for site, one in examples.items()}
    found = {
        site: torch.full((len(one.place), one.width), torch.nan, dtype=torch.float32, device="cpu")
        for site, one in pairs.items()
    }
    each = {site: max(1, CELLS // (one.width * len(one.samples))) for site, one in pairs.items()}
    for part in range(max(-(-one.samples.shape[1] // each[site]) for site, one in pairs.items())):
        graph = Graph()
        starts = {site: part * each[site] for site, one in pairs.items() if part * each[site] < one.samples.shape[1]}
        for site, start in starts.items():
            graph |= _read(lens, site, pairs[site], start, start + each[site])
        out = lens.run(graph, rows.batch)
        for site, start in starts.items():
            one, value = pairs[site], out["sample_activations", site][0].cpu()
            value = value if lens.architecture.place(site).layers is not None else value[None]
            here = (one.column >= start) & (one.column < start + each[site])
            found[site][here] = value[one.layer[here], one.column[here] - start]
    return {site: (pairs[site].place, value) for site, value in found.items()}


def pairs_of(lens: Lens, rows: PicturedRows, examples: ByNumber, own: Sequence[int]) -> Pairs:
    """The pairs of neuron and question that are examples in a batch."""
    best, site = examples.best, examples.site
    place, k = examples.of(own), best.sample[site].shape[1]
    neurons, sample = best.neurons[site][place // k], best.sample[site].flatten()[place]
    layer = neurons[:, 0]
    ordered = layer.sort(stable=True)
    column = torch.empty_like(layer)
    column[ordered.indices] = torch.arange(len(layer), device="cpu") - torch.searchsorted(
        ordered.values, ordered.values
    )
    size = (lens.architecture.place(site).layers or 1, int(column.max()) + 1 if len(column) else 0)
    tables = [torch.full(size, fill, dtype=torch.int64, device="cpu") for fill in (0, -1)]
    tables[0][layer, column], tables[1][layer, column] = neurons[:, 1], sample
    width = max(rows.positions(row, site) for row in range(rows.batch.rows))
    return Pairs(place, layer, column, tables[0], tables[1], width)


def _read(lens: Lens, site: str, pairs: Pairs, start: int, stop: int) -> Graph:
    """The read of some columns of the tables."""
    tables = {"neurons": pairs.neurons[:, start:stop], "samples": pairs.samples[:, start:stop]}
    if lens.architecture.place(site).layers is None:
        tables = {name: table[0] for name, table in tables.items()}
    bound = {name: per_layer({site: table.contiguous()}) for name, table in tables.items()}
    return Graph((sample_activations.at(site).bind(width=pairs.width, **bound),))
