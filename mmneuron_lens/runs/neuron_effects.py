"""Effects of single neurons in a run: each domain's measured unless it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmneuron_lens.artifacts.neuron_effects import NeuronEffects
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.single_effects import measure_effects
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.folder import key_of, selection_facts
from mmneuron_lens.runs.store import Store


def effects_stage(
    lens: Lens,
    selection: Selection,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    most: int | None = None,
    random_neurons: int = 20,
    seed: int = 0,
    batch_size: int = 16,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> dict[str, NeuronEffects]:
    """The effect of every neuron of a selection on the answers of its domains, each neuron off alone.

    - samples_by_domain: questions with answers; domains of which the selection has no neuron are left out.
    - most: only so many neurons of a domain and site, those with the lowest entropy; all unless given.
    - random_neurons, seed, batch_size, frames, prompt_form: of `measure_effects`.
    """
    never = {site: mask.any(dim=-1) for site, mask in selection.masks.items()}
    put: dict[str, Any] = {"prompt": "evaluation", "frames": frames, "prompt_form": prompt_form}
    measured = {"most": most, "random neurons": random_neurons, "seed": seed, "batch size": batch_size}
    facts: dict[str, Any] = {**lens.model.facts(), **selection_facts(selection, ""), **measured}
    found: dict[str, NeuronEffects] = {}
    for domain, samples in samples_by_domain.items():
        masks = {site: _lowest(mask, selection.entropy[site], most) for site, mask in selection.neurons(domain).items()}
        if not any(bool(mask.any()) for mask in masks.values()):
            store.say(f"{lens.name}: no neuron was selected for {domain}, so none is switched off")
            continue
        own = {"questions": content_digest(samples), **asked_as(lens, samples, **put)[1]}
        found[domain] = store.get_or_make(
            key_of("neuron_effects", lens.name, domain, facts={**facts, **own}),
            lambda keeper, samples=samples, masks=masks: measure_effects(
                lens, samples, masks, never=never, random_neurons=random_neurons, seed=seed, batch_size=batch_size,
                keeper=keeper, problems=problems, progress=progress, **put,
            ),
            NeuronEffects,
            what=f"{lens.name}: single neurons off, {domain}",
        )  # fmt: skip
    return found


def _lowest(mask: Tensor, entropy: Tensor, most: int | None) -> Tensor:
    """So many marked neurons with the lowest entropy; of equal ones, the first."""
    if most is None or int(mask.sum()) <= most:
        return mask
    order = entropy.masked_fill(~mask, torch.inf).flatten().sort(stable=True).indices[:most]
    kept = torch.zeros(mask.numel(), dtype=torch.bool, device="cpu")
    kept[order] = True
    return kept.view_as(mask)
