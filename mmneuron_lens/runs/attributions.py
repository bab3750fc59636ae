"""Attributions in a run: of every domain's questions, each made unless it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import LEFT_OUT, REASONS
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.gather import Keeper, name_samples
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.attribute import AttributionPlan, attribute_steps, attributions_of, plan_attributions
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.folder import key_of
from mmneuron_lens.runs.store import Store


def attributions_stage(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    batch_size: int = 16,
    problems: Problems | None = None,
    progress: Progress = quietly,
    corpus: str = "",
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    alpha: float = 1.0,
    steps: int = 0,
    workers: int = 0,
) -> dict[str, Attributions]:
    """The attributions of every domain's questions; settings as of `experiments.attribute.plan_attributions`.

    - workers: processes that decode images ahead.
    """
    made: dict[str, Attributions] = {}
    settings: dict[str, Any] = {"batch_size": batch_size, "prompt": prompt, "frames": frames, "corpus": corpus}
    settings |= {"prompt_form": prompt_form, "alpha": alpha, "steps": steps}
    for domain, samples in samples_by_domain.items():
        plan = plan_attributions(lens, samples, problems=problems, **settings)
        shared: dict[str, Any] = {"workers": workers, "problems": problems, "progress": progress}

        def make(keeper: Keeper, plan: AttributionPlan = plan, shared: dict[str, Any] = shared) -> Attributions:
            return attributions_of(attribute_steps(lens, plan, keeper=keeper, **shared), plan)

        key = key_of("attributions", plan.facts["model id"], domain, facts=plan.facts)
        title = f"{lens.name}: attributing right answers to neurons, {domain}"
        found = made[domain] = store.get_or_make(key, make, Attributions, what=title)
        left = set(found.provenance[LEFT_OUT])
        asked = [sample for step in plan.steps for sample in step.samples if sample.id in left]
        name_samples(asked, found.provenance.get(REASONS, {}), problems)
    return made
