"""Read maps: a second pass over the questions that are examples, for what their neurons do at every position of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interventions import SITES, per_layer, sample_activations
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.neuron_examples import AROUND, SIDE
from mmneuron_lens.batching.batches import Step, ids_of, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, concatenate, gather, joined
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.experiments.best_examples import BestExamples
from mmneuron_lens.experiments.pictured_row import laid, pictured_row, positions_of, shares
from mmneuron_lens.experiments.shown_samples import shown_tensors
from mmneuron_lens.experiments.tops import places_of
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch

CELLS = 2**26
"""Activations that are held at a time: 256 MiB in float32."""

ROWS = 8
"""Questions in one forward of this pass, at most: every neuron is read at all positions of a few of them."""

AGREEMENT = {torch.float64: 1e-3, torch.float32: 1e-2}
"""By how much two forwards in batches of other sizes may differ, as a share of the largest activation; else a half."""


@dataclass(frozen=True, eq=False)
class ByNumber:
    """The examples of one site by the number of their question.

    - row, rank: int64 [example]: which neuron, and which of its examples.
    """

    best: BestExamples
    site: str

    @cached_property
    def order(self) -> Tensor:
        """Places among all [neuron, k], by the number of the sample; absent ones first."""
        return self.best.sample[self.site].flatten().sort(stable=True).indices

    @cached_property
    def sorted(self) -> Tensor:
        return self.best.sample[self.site].flatten()[self.order]

    @cached_property
    def places(self) -> Tensor:
        """Of each neuron among those of its layer."""
        return places_of(self.best.neurons[self.site])

    def of(self, numbers: Sequence[int]) -> Tensor:
        """Places among all [neuron, k] of the examples that are these questions, question by question."""
        edges = torch.tensor([[one, one + 1] for one in numbers], dtype=torch.int64, device="cpu").view(-1, 2)
        bounds = torch.searchsorted(self.sorted, edges)
        return torch.cat([self.order[start:stop] for start, stop in bounds.tolist()] or [self.order[:0]])


def read_maps(
    lens: Lens,
    best: BestExamples,
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> dict[str, Tensor]:
    """Maps, boxes, pictures and surroundings of all examples, and what their questions look like.

    - batch_size, prompt, frames, prompt_form: as they were read; no forward takes more than `ROWS` questions.

    By `part/SITE`, with the example along the last axis: `place` int64, among all [neuron, k]; `picture`, `box` (-1
    for none), `maps`, `map_maximum`, `around`, and `difference`, by how much this pass differs from the first. By
    question, of `shown_tensors`.

    Raises `InvalidValue` where a question cannot be read any more, or where this pass does not find what the first
    found.
    """
    numbers = {(one.domain, one.id): number for number, one in enumerate(best.samples)}
    by_number = {site: ByNumber(best, site) for site in best.neurons}
    left = LeftOut(problems)

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form)
        if batch is None:
            return Piece(step.group, {})
        own = [numbers[one.domain, one.id] for one in kept]
        batch = batch.with_samples(own)
        made = shown_tensors(batch, own)
        for site, examples in by_number.items():
            made |= _at_site(lens, batch, own, best, examples, site)
        return Piece(step.group, made, ids_of(kept))

    steps = steps_of(sized(best.samples, problems), min(batch_size, ROWS), buckets=False)
    held = gather(
        steps, run, concatenate, keeper=keeper or Memory(), left=left, title="maps of examples", progress=progress
    )
    if reasons := {name: why for one in held for name, why in one.piece.reasons.items()}:
        name, why = next(iter(reasons.items()))
        raise InvalidValue(f"question {name!r} is an example of a neuron and cannot be read again: {why}")
    total = held[0].piece
    for one in held[1:]:
        total = joined(total, one.piece, concatenate)
    return total.tensors


def _at_site(
    lens: Lens, batch: Batch, own: Sequence[int], best: BestExamples, examples: ByNumber, site: str
) -> dict[str, Tensor]:
    """All that is kept of the examples of one site that a batch holds."""
    k = best.sample[site].shape[1]
    found: dict[str, list[Tensor]] = {part: [] for part in _EMPTY}
    values = _Values(lens, batch, best, examples, site, own)
    for row, number in enumerate(own):
        place = examples.of([number])
        if not len(place):
            continue
        given = values.of(place, positions_of(batch, row, site))
        at = best.position[site].flatten()[place]
        first = best.activation[site].flatten()[place]
        difference = _difference(lens, best, site, place, given, at, first)
        one = laid(given, at, pictured_row(batch, row, site))
        found["place"].append(place)
        found["picture"].append(one.picture)
        found["box"].append(one.box.nan_to_num(nan=-1).T)
        found["maps"].append(one.maps.permute(1, 2, 0))
        found["map_maximum"].append(one.map_maximum)
        found["around"].append(_around(given, at, site).T)
        found["difference"].append(difference)
    assert all(int(place) // k < len(best.neurons[site]) for some in found["place"] for place in some[:1])
    return {
        f"{part}/{site}": torch.cat(some, -1).contiguous() if some else _EMPTY[part].clone()
        for part, some in found.items()
    }


_EMPTY = {
    "place": torch.zeros(0, dtype=torch.int64, device="cpu"),
    "picture": torch.zeros(0, dtype=torch.int64, device="cpu"),
    "box": torch.zeros(4, 0, dtype=torch.float32, device="cpu"),
    "maps": torch.zeros(SIDE, SIDE, 0, dtype=torch.uint8, device="cpu"),
    "map_maximum": torch.zeros(0, dtype=torch.float32, device="cpu"),
    "around": torch.zeros(2 * AROUND + 1, 0, dtype=torch.uint8, device="cpu"),
    "difference": torch.zeros(0, dtype=torch.float32, device="cpu"),
}


class _Values:
    """The activations of the examples of one site in one batch, at every position of their questions."""

    def __init__(
        self, lens: Lens, batch: Batch, best: BestExamples, examples: ByNumber, site: str, own: Sequence[int]
    ) -> None:
        self.place = examples.of(own)
        self.width = max(positions_of(batch, row, site) for row in range(batch.rows))
        neurons, k = best.neurons[site], best.sample[site].shape[1]
        layers = lens.architecture.place(site).layers
        self.values = torch.zeros(len(self.place), self.width, dtype=torch.float32, device="cpu")
        if not len(self.place):
            return
        of = self.place // k
        sample, layer = best.sample[site].flatten()[self.place], neurons[of, 0]
        # A column of the tables for each pair of a layer, in order.
        ordered = layer.sort(stable=True)
        column = torch.empty_like(layer)
        column[ordered.indices] = torch.arange(len(layer), device="cpu") - torch.searchsorted(
            ordered.values, ordered.values
        )
        columns = int(column.max()) + 1
        tables = {
            name: torch.full((layers or 1, columns), fill, dtype=torch.int64, device="cpu")
            for name, fill in (("neurons", 0), ("samples", -1))
        }
        tables["neurons"][layer, column], tables["samples"][layer, column] = neurons[of, 1], sample
        each = max(1, CELLS // (self.width * (layers or 1)))
        for start in range(0, columns, each):
            bound = {name: table[:, start : start + each].contiguous() for name, table in tables.items()}
            bound = bound if layers is not None else {name: table[0] for name, table in bound.items()}
            read = sample_activations.at(site).bind(
                width=self.width, **{name: per_layer({site: table}) for name, table in bound.items()}
            )
            (value,) = lens.run(read, batch)["sample_activations", site]
            value = value.cpu() if layers is not None else value.cpu()[None]
            here = (column >= start) & (column < start + each)
            self.values[here] = value[layer[here], column[here] - start]

    def of(self, place: Tensor, width: int) -> Float[Tensor, "example position"]:
        """Those of some examples, of whose question these are the positions."""
        order = self.place.argsort()
        found = order[torch.searchsorted(self.place[order], place)]
        return self.values[found, :width]


def _difference(
    lens: Lens, best: BestExamples, site: str, place: Tensor, values: Tensor, at: Tensor, first: Tensor
) -> Float[Tensor, " example"]:
    """How far this pass is from the first, as a share of the largest activation of the neuron in the question."""
    again, largest = values.gather(1, at[:, None])[:, 0], values.nan_to_num(nan=-torch.inf).amax(1)
    scale = values.nan_to_num(nan=0.0).abs().amax(1).maximum(first.abs()).clamp(min=1e-6)
    difference = torch.maximum((again - first).abs(), largest - again) / scale
    allowed = AGREEMENT.get(lens.dtype, 0.5)
    wrong = (~(difference <= allowed)).nonzero()[:, 0].tolist()
    if wrong:
        one = wrong[0]
        number, k = int(place[one]), best.sample[site].shape[1]
        layer, neuron = best.neurons[site][number // k].tolist()
        name = best.samples[int(best.sample[site].flatten()[number])].id
        raise InvalidValue(
            f"{site} {layer}/{neuron} on question {name!r}: the second reading has {float(again[one]):.6g} at position "
            f"{int(at[one])} and at most {float(largest[one]):.6g}, and the first found {float(first[one]):.6g} there; "
            "the model does not compute the same twice. Read both again with --replace, in float32 or without packing."
        )
    return difference


def _around(values: Float[Tensor, "example position"], at: Tensor, site: str) -> Tensor:
    """uint8 [example, 2 * `AROUND` + 1]: the activation around a position, as shares of the largest there."""
    if SITES[site].group != "llm":
        return torch.zeros(len(values), 2 * AROUND + 1, dtype=torch.uint8, device="cpu")
    places = at[:, None] + torch.arange(-AROUND, AROUND + 1, device="cpu")
    there = (places >= 0) & (places < values.shape[1])
    near = values.gather(1, places.clamp(0, values.shape[1] - 1)).nan_to_num(nan=0.0).clamp(min=0)
    near = near.masked_fill(~there, 0)
    return shares(near, near.amax(1))
