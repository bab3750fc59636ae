"""Shared rows: whether the questions of one image are counted in one row, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence

from mmneuron_lens.batching.chat import PromptForm, images_come_first
from mmneuron_lens.batching.prompting import Prompt, prompt_of
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.encoding import why_not_packed
from mmneuron_lens.wire.pack import limit_of
from mmneuron_lens.wire.tiles import longest_image


def packing_of(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    frames: Frames,
    prompt_form: PromptForm,
    exact: bool,
    at_most: int,
) -> tuple[bool, str]:
    """Whether questions of the same images share work, and what an artifact says of it.

    - exact: every question by itself.
    - at_most: questions that share a row.
    """
    if exact or not all(sample.images for sample in samples):
        return False, "none"
    facts = lens.architecture.facts
    if facts.get("vision_tower"):
        return True, "vision tower"
    if prompt == "evaluation" and not images_come_first(lens, prompt_form):
        return False, "none: the chat template puts images behind the question"
    if why := why_not_packed(lens.model):
        return False, f"none: {why}"
    limit = limit_of(facts)
    if limit is None:
        return True, f"{at_most} questions"
    # The same words for every domain, so that their counts may be compared.
    said = f"{at_most} questions where no prompt of the domain is longer than {limit} positions, else none"
    longest = longest_prompt(lens, samples, prompt, frames, prompt_form)
    packs = longest is not None and longest <= limit
    return packs, f"{said}: attention beyond them is not plainly causal"


def longest_prompt(
    lens: Lens, samples: Sequence[Sample], prompt: Prompt, frames: Frames, prompt_form: PromptForm
) -> int | None:
    """Positions that the longest prompt takes at most, each image on the largest grid; None where that is not known."""
    tokenizer, image = lens.processor.tokenizer, longest_image(lens.architecture.facts)
    if image is None:
        return None

    def positions(sample: Sample) -> int:
        images = 1 if frames == "strip" else len(sample.images)
        text = prompt_of(lens, sample, prompt, images, prompt_form)
        # The text counts its placeholders too, which outweighs what words gain by being cut at them.
        return len(tokenizer(text)["input_ids"]) + images * image

    return max(map(positions, samples), default=0)
