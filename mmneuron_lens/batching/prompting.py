"""Prompting: the text that a sample's question becomes for a model."""

from __future__ import annotations

from typing import Literal

from interventions.errors import InvalidValue
from mmneuron_lens.batching.chat import PromptForm, chat_prompt, form_of
from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.prompts import ModelKind, without_image_lines
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.encoding import placeholder_of

Prompt = Literal["identification", "evaluation"]
"""Which of the paper's two prompts (Table 5)."""


def model_kind(lens: Lens) -> ModelKind:
    """Which of the two published prompts a model is asked with: does `<image>` stand in its text?"""
    return "llava-next" if lens.architecture.facts["images_in_text"] else "instructblip"


def prompt_of(
    lens: Lens, sample: Sample, prompt: Prompt, images: int | None = None, prompt_form: PromptForm = "auto"
) -> str:
    """A sample's prompt, with a placeholder for each image where images stand in the text.

    - images: how many the model is shown; all of the sample's unless given.
    - prompt_form: the frame of the evaluation prompt, see `chat.form_of`.

    Lines of `<image>` before and behind a question stand for its images, as in LLaVA's conversation files, and are
    taken away.
    """
    kind, (question, _) = model_kind(lens), without_image_lines(sample.question)
    count = len(sample.images) if images is None else images
    if prompt == "identification":
        text = prompts.identification(kind, question)
    elif prompt == "evaluation":
        if form_of(lens, prompt_form) == "chat":
            return chat_prompt(lens, prompts.question_body(kind, question, sample.options, sample.domain), count)
        text = prompts.evaluation(kind, question, sample.options, sample.domain)
    else:
        raise InvalidValue(f"unknown prompt {prompt!r}; choose from identification, evaluation.")
    return text.replace("<image>\n", placeholder_of(lens.model) * count, 1) if kind == "llava-next" else text
