"""Examples in a run: what chosen neurons answer to, with thumbnails of the pictures, each made unless it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.neuron_words import WrittenWords
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.conditions import tensors_digest
from mmneuron_lens.experiments.count import CountPlan, plan_count
from mmneuron_lens.experiments.examples import asked_in, read_planned
from mmneuron_lens.experiments.tops import listed
from mmneuron_lens.experiments.written_words import written_words
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.folder import RunError, key_of
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runs.thumbnails import write_thumbnails
from mmneuron_lens.runs.tops import tops_stage

Masks = Mapping[str, Bool[Tensor, "layer neuron"]]


def examples_stage(
    lens: Lens,
    selection: Selection | None,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    of: Literal["selected", "all"] | Masks = "selected",
    k: int = 20,
    workers: int = 0,
    again: Sequence[str] = (),
    jobs: Mapping[str, Any] | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
    **planned: Any,
) -> NeuronExamples:
    """The examples of chosen neurons, made unless they are there, and thumbnails of their pictures.

    Written to examples/MODEL.safetensors, examples/MODEL/DOMAIN.safetensors (their top activations, unless
    `count --top` kept those of all neurons), words/MODEL.jsonl (what neurons of the language model write), and
    neurons/pictures/.

    - selection: of this model, where its neurons are asked for.
    - of: the selected neurons of every domain, all that are counted, or masks by site.
    - k: how many images of each neuron.
    - workers, again, jobs, problems, progress: as of `count_stage`.
    - planned: settings of `plan_count`; asked as they were counted, what `count --top` kept is used.

    Raises `RunError` where selected neurons are asked for and none were selected, and as `read_examples` does.
    """
    masks = chosen_neurons(lens, selection, of)
    chosen = listed(lens, masks)
    plans = [plan_count(lens, some, problems=problems, **planned) for some in samples_by_domain.values()]
    shared: dict[str, Any] = {"problems": problems, "progress": progress}
    facts: dict[str, Any] = {"questions": {plan.domain: plan.facts for plan in plans}, "top": k}
    facts["neurons"] = {site: tensors_digest({site: masks[site]}) for site in chosen}

    def tops(plan: CountPlan) -> Any:
        return tops_stage(lens, store, plan, chosen, k, again=tuple(again), jobs=jobs, workers=workers, **shared)

    examples = store.get_or_make(
        key_of("examples", lens.name, facts=facts),
        lambda keeper: read_planned(lens, plans, chosen, k, tops, keeper=keeper, **shared),
        NeuronExamples,
        what=f"{lens.name}: examples of {sum(map(len, chosen.values()))} neurons",
    )
    asked, first = asked_in(plans), plans[0]
    if store.folder is not None:
        write_thumbnails(store.folder, examples, asked, lens, first.frames, progress)
    put: dict[str, Any] = {"prompt": first.prompt, "frames": first.frames, "prompt_form": first.prompt_form}
    put |= {"batch_size": first.facts["batch size"], **shared}
    store.get_or_make(
        key_of("words", lens.name, facts=facts, suffix=".jsonl"),
        lambda keeper: written_words(lens, examples, asked, keeper=keeper, **put),
        WrittenWords,
        what=f"{lens.name}: words that neurons write",
    )
    return examples


def chosen_neurons(lens: Lens, selection: Selection | None, of: Literal["selected", "all"] | Masks) -> Masks:
    """Masks by site of the neurons that are asked for. Raises `RunError` where none were selected."""
    if isinstance(of, Mapping):
        return of
    if of == "all":
        places = {site: lens.architecture.place(site) for site in lens.sites if site.endswith(".act")}
        return {
            site: torch.ones(place.layers or 1, place.sizes["neuron"], dtype=torch.bool, device="cpu")
            for site, place in places.items()
        }
    if selection is None:
        raise RunError(
            f"no neurons of {lens.name} are selected; run `mmneuron select RUN`, or name some with --of FILE."
        )
    if selection.model != lens.name:
        raise RunError(f"the selection is of {selection.model}, and the model is {lens.name}; give both of one model.")
    return {site: mask.any(-1) for site, mask in selection.masks.items()}
