"""Read tops: one pass over the questions of a domain for the top activations of its neurons, here or on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmneuron_lens.artifacts.top_activations import TopActivations
from mmneuron_lens.batching.batches import Step, ids_of
from mmneuron_lens.batching.encoding import encode, encode_packed
from mmneuron_lens.batching.gather import Held, Keeper, Memory, Piece, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.remote import Jobs, Values, gather_remotely
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import PACKED, CountPlan
from mmneuron_lens.experiments.tops import TopRead, top_read
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch


def read_tops(
    lens: Lens,
    plan: CountPlan,
    neurons: Mapping[str, Tensor] | None = None,
    k: int = 20,
    *,
    keeper: Keeper | None = None,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    jobs: Jobs | None = None,
) -> TopActivations:
    """The k images on which each neuron is most active, of the questions of one domain.

    - plan: of `experiments.count.plan_count`: which questions, how they are asked and batched.
    - neurons: by site int64 [neuron, 2], of `tops.listed`; all neurons if left out.
    - keeper, workers, problems, jobs: as of `count_steps`.

    No more is held than k examples of each neuron and the activations of one batch. Raises `InvalidValue` where no
    sample can be read, `NotFinite` for activations that say nothing of their neurons.
    """
    read = top_read(plan.steps, k, neurons)
    held = top_steps(lens, plan, read, keeper or Memory(), workers, problems, progress, jobs)
    return read.folded(held, plan.facts["model id"], plan.domain, plan.facts)


def top_steps(
    lens: Lens,
    plan: CountPlan,
    read: TopRead,
    keeper: Keeper,
    workers: int,
    problems: Problems | None,
    progress: Progress,
    jobs: Jobs | None,
) -> list[Held]:
    """The pieces of all steps of the plan, each made unless it is kept."""
    left, graph = LeftOut(problems), read.graph(lens)

    def encoded(samples: Sequence[Sample], opened: Opener = open_images) -> tuple[Batch | None, list[Sample]]:
        if plan.packs:
            found = encode_packed(lens, samples, plan.prompt, PACKED, left, opened, plan.frames, plan.prompt_form)
        else:
            found = encode(lens, samples, plan.prompt, left, opened, plan.frames, plan.prompt_form)
        return read.numbered(*found), found[1]

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encoded(step.samples, opened)
        out = {} if batch is None else lens.run(graph, batch)
        return Piece(step.group, read.tensors(lens, out), ids_of(kept))

    def returned(group: int, out: Values, facts: Mapping[str, Any]) -> Piece:
        return Piece(group, read.tensors(lens, out), tuple(facts["seen"]))

    shared: dict[str, Any] = {
        "keeper": keeper,
        "left": left,
        "title": f"top activations of {plan.domain}",
        "progress": progress,
    }
    if jobs is None:
        return gather(plan.steps, run, read.fold, workers=workers, **shared)
    return gather_remotely(lens, graph, plan.steps, encoded, returned, jobs=jobs, **shared)
