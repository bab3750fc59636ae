"""Frames: of several images a question, as many as fit into the model beside prompt and answer, or all in one strip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.artifacts.counts import FRAMES_SHOWN
from mmneuron_lens.batching.chat import PromptForm, form_facts
from mmneuron_lens.batching.image_positions import ImagePositions
from mmneuron_lens.batching.prompting import Prompt, model_kind, prompt_of
from mmneuron_lens.corpora.folder import image_sizes
from mmneuron_lens.corpora.frames import FRAMES, Frames, that_fit
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.token_count import ANSWER, LLAVA_NEXT, TokenCount
from mmneuron_lens.lens import Lens


def token_count(lens: Lens, frames: Frames = "fit") -> TokenCount:
    """How samples are counted in LLaVA-NeXT tokens: with this model's tokenizer, and its tiles where it has any."""
    facts = lens.architecture.facts if lens.architecture.facts.get("grid_pinpoints") else LLAVA_NEXT
    return TokenCount(lens.processor.tokenizer, facts, frames)


def with_frames_that_fit(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    new_tokens: int = 0,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
) -> list[Sample]:
    """Samples of several images with as many evenly spaced ones as fit into the model.

    - new_tokens: room that an answer needs. At least `ANSWER` (512, the paper's) are left whatever is asked, so that
      every stage shows the same frames; not in a model that has no more positions than that.
    - frames: with "strip" the samples stay as they are, since all their images are shown as one.

    A model of one image is given the middle one of all when it is asked, so its samples stay as they are too. Raises
    `InvalidValue` for unknown frames.
    """
    if frames not in FRAMES:
        raise InvalidValue(unknown("frames", frames, FRAMES))
    several = any(len(sample.images) > 1 for sample in samples)
    if frames == "strip" or model_kind(lens) != "llava-next" or not several:
        return list(samples)
    positions = ImagePositions(lens)
    text: Any = lens.module.config.get_text_config()
    context = text.max_position_embeddings
    room = context - max(new_tokens, ANSWER if context > ANSWER else 0)

    def fitted(sample: Sample) -> Sample:
        sizes = image_sizes(sample, RecordProblems(sample.images[0])) if len(sample.images) > 1 else None
        if sizes is None:
            return sample

        def beside_the_text(images: int) -> int:
            asked = prompt_of(lens, sample, prompt, images, prompt_form)
            return room - positions.of_text(asked, images, sizes[0])

        places = that_fit(sizes, beside_the_text, positions.of)
        return replace(sample, images=tuple(sample.images[place] for place in places))

    return [fitted(sample) for sample in samples]


def asked_as(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    new_tokens: int = 0,
) -> tuple[list[Sample], dict[str, Any]]:
    """Samples `with_frames_that_fit`, and what an artifact says of how they are asked.

    That is the frame of an evaluation prompt (`chat.form_facts`), and where samples have several images "frames" and
    "frames shown": by number of images, how many questions.
    """
    shown = with_frames_that_fit(lens, samples, prompt, new_tokens, frames, prompt_form)
    one = model_kind(lens) != "llava-next" and frames != "strip"
    pairs = zip(samples, shown, strict=True)
    numbers = Counter(1 if one else len(after.images) for before, after in pairs if len(before.images) > 1)
    told = {"frames": frames, FRAMES_SHOWN: {str(number): numbers[number] for number in sorted(numbers)}}
    return shown, {**form_facts(lens, prompt, prompt_form), **(told if numbers else {})}


def told_by_domain(lens: Lens, samples_by_domain: Mapping[str, Sequence[Sample]], **asked: Any) -> dict[str, Any]:
    """What `asked_as` says of each domain's samples, under "asked"; empty where it says nothing."""
    told = {domain: asked_as(lens, samples, **asked)[1] for domain, samples in samples_by_domain.items()}
    return {"asked": told} if any(told.values()) else {}
