"""Frames: of several images a question, as many as fit into the model beside prompt and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmneuron_lens.batching.prompting import Prompt, model_kind, prompt_of
from mmneuron_lens.corpora.folder import image_sizes
from mmneuron_lens.corpora.frames import that_fit
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.token_count import LLAVA_NEXT, TokenCount
from mmneuron_lens.lens import Lens


def token_count(lens: Lens) -> TokenCount:
    """How samples are counted in LLaVA-NeXT tokens: with this model's tokenizer, and its tiles where it has any."""
    facts = lens.architecture.facts if lens.architecture.facts.get("grid_pinpoints") else LLAVA_NEXT
    return TokenCount(lens.processor.tokenizer, facts)


def all_that_fit(
    lens: Lens, samples_by_domain: Mapping[str, Sequence[Sample]], prompt: Prompt, new_tokens: int = 0
) -> dict[str, list[Sample]]:
    """`with_frames_that_fit`, domain by domain."""
    return {
        domain: with_frames_that_fit(lens, samples, prompt, new_tokens) for domain, samples in samples_by_domain.items()
    }


def with_frames_that_fit(lens: Lens, samples: Sequence[Sample], prompt: Prompt, new_tokens: int = 0) -> list[Sample]:
    """Samples of several images with as many evenly spaced ones as fit into the model.

    - new_tokens: room that is left for an answer.

    A model of one image is given the middle one of all when it is asked, so its samples stay as they are.
    """
    if model_kind(lens) != "llava-next" or all(len(sample.images) == 1 for sample in samples):
        return list(samples)
    count = token_count(lens)
    text: Any = lens.module.config.get_text_config()
    room = text.max_position_embeddings - new_tokens

    def fitted(sample: Sample) -> Sample:
        sizes = image_sizes(sample, RecordProblems(sample.images[0])) if len(sample.images) > 1 else None
        if sizes is None:
            return sample
        words = len(lens.processor.tokenizer(prompt_of(lens, sample, prompt).replace("<image>", ""))["input_ids"])
        places = that_fit(sizes, room - words, count.image)
        return replace(sample, images=tuple(sample.images[place] for place in places))

    return [fitted(sample) for sample in samples]
