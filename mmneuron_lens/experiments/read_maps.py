"""Read maps: a second pass over the questions that are examples, for their neurons at every position of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions import SITES
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
from mmneuron_lens.experiments.example_values import ByNumber, example_values
from mmneuron_lens.experiments.pictured_row import PicturedRows, laid, shares
from mmneuron_lens.experiments.shown_samples import shown_tensors
from mmneuron_lens.lens import Lens

ROWS = 8
"""Questions in one forward of this pass, at most: every neuron is read at all positions of a few of them."""

AGREEMENT = {torch.float64: 1e-3, torch.float32: 1e-2}
"""By how much two forwards in batches of other sizes may differ, as a share of the largest activation; else a half."""


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
    examples = {site: ByNumber(best, site) for site in best.neurons}
    left = LeftOut(problems)

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form)
        if batch is None:
            return Piece(step.group, {})
        own = [numbers[one.domain, one.id] for one in kept]
        batch = batch.with_samples(own)
        rows = PicturedRows(batch)
        made = shown_tensors(batch, own, rows)
        for site, (place, values) in example_values(lens, rows, examples, own).items():
            made |= _at_site(lens, rows, own, best, site, place, values)
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
    lens: Lens,
    rows: PicturedRows,
    own: Sequence[int],
    best: BestExamples,
    site: str,
    place: Int[Tensor, " pair"],
    values: Float[Tensor, "pair width"],
) -> dict[str, Tensor]:
    """All that is kept of the examples of one site that a batch holds."""
    found: dict[str, list[Tensor]] = {part: [] for part in _EMPTY}
    sample = best.sample[site].flatten()[place]
    for row, number in enumerate(own):
        mine = (sample == number).nonzero()[:, 0]
        if not len(mine):
            continue
        lies = rows.of(row, site)
        given, at = values[mine, : len(lies.picture)], best.position[site].flatten()[place[mine]]
        one = laid(given, at, lies)
        found["place"].append(place[mine])
        found["picture"].append(one.picture)
        found["box"].append(one.box.nan_to_num(nan=-1).T)
        found["maps"].append(one.maps.permute(1, 2, 0))
        found["map_maximum"].append(one.map_maximum)
        found["around"].append(_around(given, at, site).T)
        found["difference"].append(_difference(lens, best, site, place[mine], given, at))
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


def _difference(
    lens: Lens, best: BestExamples, site: str, place: Tensor, values: Tensor, at: Tensor
) -> Float[Tensor, " example"]:
    """How far this pass is from the first, as a share of the largest activation of the neuron in the question."""
    first = best.activation[site].flatten()[place]
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
