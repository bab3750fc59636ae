"""Encoding: a step's samples as one batch of a model, their images decoded, those that cannot be named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from mmneuron_lens.batching.answer_tokens import answer_tokens
from mmneuron_lens.batching.batches import rows_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.left_out import LeftOut, attributed
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.prompting import Prompt, model_kind, prompt_of
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.frames import Frames, middle, strip
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.limits import refuse_beyond


@dataclass(frozen=True)
class Ready:
    """A sample, the pictures that a model is shown of it, and what would travel to a server in their place.

    What travels is the files themselves, not the decoded pictures.
    """

    sample: Sample
    seen: list[Image.Image]
    given: tuple[Any, ...]


def encode(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    problems: Problems | None = None,
    opened: Opener = open_images,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    new_tokens: int = 0,
    answered: bool = False,
) -> tuple[Batch | None, list[Sample]]:
    """A batch of the samples that can be decoded and encoded (None if there is none), and these samples.

    - prompt: which of the paper's prompts.
    - problems: where the other samples are named; without it the first raises `InvalidValue`.
    - opened: decodes a sample's images, or has them decoded already.
    - frames: what a model is shown of several images: "fit", the images of the sample (a model of one image, the
      middle one), or "strip", all of them side by side as one. Which of them fit is said before, by
      `frames.with_frames_that_fit`.
    - prompt_form: the frame of the evaluation prompt, see `chat.form_of`.
    - new_tokens: positions that an answer takes.
    - answered: with each sample's first answer behind its prompt, as `answer_tokens` writes it.
    """
    ready, left = [], LeftOut.of(problems)
    for sample in samples:
        decoded = opened(sample, left)
        if decoded is not None:
            ready.append(Ready(sample, *shown(lens, sample, decoded, frames)))

    def made(some: Sequence[Ready]) -> Batch:
        texts = [prompt_of(lens, one.sample, prompt, len(one.seen), prompt_form) for one in some]
        asked = zip(texts, some, strict=True) if answered else ()
        answers = [answer_tokens(lens, text, one.sample.answers[0]) for text, one in asked]
        batch = lens.encode([one.seen for one in some], texts, answers or None)
        if new_tokens:
            refuse_beyond(lens.model, batch.inputs, [""] * len(some), new_tokens)
        return replace(batch, given=(tuple(one.given for one in some), batch.given[1]))

    return _batch(ready, made, left)


def encode_packed(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    at_most: int,
    problems: Problems | None = None,
    opened: Opener = open_images,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
) -> tuple[Batch | None, list[Sample]]:
    """As `encode`, with questions of the same images packed, at most so many in a row; for reads that sum."""
    ready, left = [], LeftOut.of(problems)
    for some in rows_of(samples, at_most):
        decoded = opened(some[0], left)
        if decoded is None:
            # Each question of an image that cannot be read is a problem of its own.
            for sample in some[1:]:
                opened(sample, left)
            continue
        seen, given = shown(lens, some[0], decoded, frames)
        ready += [Ready(sample, seen, given) for sample in some]

    def made(some: Sequence[Ready]) -> Batch:
        each, rows, given = iter(some), [], []
        for asked in rows_of([one.sample for one in some], at_most):
            held = [next(each) for _ in asked]
            texts = [prompt_of(lens, one.sample, prompt, len(one.seen), prompt_form) for one in held]
            rows.append((held[0].seen, texts))
            given.append(held[0].given)
        batch = lens.pack(rows, cut=True)
        return replace(batch, given=(tuple(given), batch.given[1]))

    return _batch(ready, made, left)


def _batch(
    ready: Sequence[Ready], made: Callable[[Sequence[Ready]], Batch], left: LeftOut
) -> tuple[Batch | None, list[Sample]]:
    if not ready:
        return None, []
    batch, kept = attributed(ready, made, left, lambda one: one.sample)
    return batch, [one.sample for one in kept]


def shown(
    lens: Lens, sample: Sample, decoded: list[Image.Image], frames: Frames = "fit"
) -> tuple[list[Image.Image], tuple]:
    """The pictures that a model is shown of a sample, and what would travel in their place: files, or the strip."""
    if len(decoded) > 1 and frames == "strip":
        joined = strip(decoded)
        return [joined], (joined,)
    if model_kind(lens) == "instructblip":
        place = middle(len(decoded))
        return [decoded[place]], (sample.images[place],)
    return decoded, sample.images
