"""Examples: the pictures and words on which chosen neurons are most active, with maps over the pictures.

Two passes: one over all questions, which keeps the k best images of each neuron; one over the questions that are an
example of some neuron, which reads it at every position of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.neuron_examples import AROUND, SIDE, NeuronExamples
from mmneuron_lens.artifacts.top_activations import TopActivations
from mmneuron_lens.batching.gather import Keeper
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.remote import Jobs
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.best_examples import BestExamples, best_examples
from mmneuron_lens.experiments.count import CountPlan, plan_count
from mmneuron_lens.experiments.read_maps import read_maps
from mmneuron_lens.experiments.read_tops import read_tops
from mmneuron_lens.experiments.shown_samples import shown_samples
from mmneuron_lens.experiments.tops import listed
from mmneuron_lens.lens import Lens

MOST = 2**32
"""Bytes of maps of one artifact, at most: about 370,000 neurons with 20 examples each take as much."""


def read_examples(
    lens: Lens,
    samples: Mapping[str, Sequence[Sample]],
    neurons: Mapping[str, Bool[Tensor, "layer neuron"]],
    k: int = 20,
    *,
    keeper: Keeper | None = None,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    jobs: Jobs | None = None,
    **planned: Any,
) -> NeuronExamples:
    """The k images on which each chosen neuron is most active, over all domains, one example an image.

    - samples: the questions by domain.
    - neurons: by site bool [layer, neuron], one row where a site has no layers; such as `selection.neurons(domain)`.
    - keeper: for the pieces of the second pass. workers, problems, progress, jobs: as of `count_steps`.
    - planned: settings of `plan_count`: how questions are asked and batched.

    No more is held than the examples and the activations of one batch, of which the second pass reads no more than
    `example_values.CELLS` at a time. A lens that is remote reads there.

    Raises `InvalidValue` for no neuron, a mask of another size, more maps than `MOST` bytes, and as `read_tops` and
    `read_maps` do; `UnknownName` for a site without neurons.
    """
    chosen = listed(lens, neurons)
    plans = [plan_count(lens, some, problems=problems, **planned) for some in samples.values()]
    shared: dict[str, Any] = {"problems": problems, "progress": progress}

    def tops(plan: CountPlan) -> TopActivations:
        return read_tops(lens, plan, chosen, k, workers=workers, jobs=jobs, **shared)

    return read_planned(lens, plans, chosen, k, tops, keeper=keeper, **shared)


def read_planned(
    lens: Lens,
    plans: Sequence[CountPlan],
    chosen: Mapping[str, Int[Tensor, "neuron 2"]],
    k: int,
    tops: Callable[[CountPlan], TopActivations],
    *,
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> NeuronExamples:
    """The examples of `listed` neurons in planned questions, one plan a domain. Raises as `read_examples`.

    - tops: the top activations of a domain, of these neurons or more, k or more of each.
    """
    count = sum(map(len, chosen.values()))
    if count * k * SIDE * SIDE > MOST:
        raise InvalidValue(
            f"{k} examples of {count} neurons have {count * k * SIDE * SIDE / 2**30:.1f} GiB of maps, and "
            f"{MOST / 2**30:g} are written at most; choose fewer neurons, or fewer examples of each."
        )
    found = [tops(plan) for plan in plans]
    best = best_examples(found, asked_in(plans), chosen, k)
    first = plans[0]
    put: dict[str, Any] = {"prompt": first.prompt, "frames": first.frames, "prompt_form": first.prompt_form}
    size = first.facts["batch size"]
    maps = read_maps(lens, best, batch_size=size, keeper=keeper, problems=problems, progress=progress, **put)
    return examples_of(lens, best, maps, k, first.facts)


def asked_in(plans: Sequence[CountPlan]) -> dict[str, list[Sample]]:
    """The questions of some plans by domain, with the images that they are asked with."""
    return {plan.domain: [one for step in plan.steps for one in step.samples] for plan in plans}


def examples_of(
    lens: Lens, best: BestExamples, maps: Mapping[str, Tensor], k: int, facts: Mapping[str, Any]
) -> NeuronExamples:
    """The examples with what the second pass found of them. facts: of a plan."""
    made: dict[str, dict[str, Tensor]] = {name: {} for name in ("picture", "box", "maps", "map_maximum", "around")}
    difference = 0.0
    for site, neurons in best.neurons.items():
        n = len(neurons)
        blank = {
            "picture": torch.full((n * k,), -1, dtype=torch.int64, device="cpu"),
            "box": torch.full((n * k, 4), torch.nan, dtype=torch.float32, device="cpu"),
            "maps": torch.zeros(n * k, SIDE, SIDE, dtype=torch.uint8, device="cpu"),
            "map_maximum": torch.zeros(n * k, dtype=torch.float32, device="cpu"),
            "around": torch.zeros(n * k, 2 * AROUND + 1, dtype=torch.uint8, device="cpu"),
        }
        place = maps[f"place/{site}"]
        expected = (best.sample[site].flatten() >= 0).nonzero()[:, 0]
        if not torch.equal(place.sort().values, expected):
            raise InvalidValue(f"{site}: {len(place)} of {len(expected)} examples have a map; read them again.")
        for name, whole in blank.items():
            own = maps[f"{name}/{site}"].movedim(-1, 0)
            whole[place] = own.masked_fill(own < 0, torch.nan) if name == "box" else own
            made[name][site] = whole.view(n, k, *whole.shape[1:])
        difference = max(difference, float(maps[f"difference/{site}"].max()) if len(place) else 0.0)
    kept = ("prompt", "frames", "batch size", "packing", "prompt form", "chat template")
    return NeuronExamples(
        model=facts["model id"],
        samples=shown_samples(lens, best.samples, maps),
        neurons=best.neurons,
        activation=best.activation,
        sample=best.sample,
        position=best.position,
        **made,
        parameters={"k": k, "difference of the two passes": difference},
        provenance=provenance(**lens.model.facts(), **{name: facts[name] for name in kept if name in facts}),
    )
