"""Deviations in a run: how far the last hidden state moves with neurons off, each domain's made unless it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.conditions import Off
from mmneuron_lens.experiments.deviate import deviate
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.folder import key_of, selection_facts
from mmneuron_lens.runs.keys import Key
from mmneuron_lens.runs.store import Store


def deviate_stage(
    lens: Lens,
    selection: Selection,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    selection_id: str = "",
    random_draws: int = 5,
    seed: int = 0,
    off: Off | None = None,
    batch_size: int = 32,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> list[Deviations]:
    """The deviations of every domain's questions; settings as of `experiments.deviate.deviate`."""
    facts: dict[str, Any] = {**lens.model.facts(), **selection_facts(selection, selection_id)}
    facts |= {"off": (off or Off()).described, "seed": seed, "draws": random_draws, "batch size": batch_size}
    put: dict[str, Any] = {"prompt": "evaluation", "frames": frames, "prompt_form": prompt_form}

    def key(domain: str, samples: Sequence[Sample]) -> Key:
        own = {"questions": content_digest(samples), **asked_as(lens, samples, **put)[1]}
        return key_of("deviations", lens.name, domain, facts={**facts, **own})

    return [
        store.get_or_make(
            key(domain, samples),
            lambda keeper, samples=samples: deviate(
                lens, selection, samples, random_draws=random_draws, seed=seed, off=off, batch_size=batch_size,
                selection_id=selection_id, keeper=keeper, problems=problems, progress=progress, **put,
            ),
            Deviations,
            what=f"{lens.name}: deviation of the last hidden state, {domain}",
        )
        for domain, samples in samples_by_domain.items()
    ]  # fmt: skip
