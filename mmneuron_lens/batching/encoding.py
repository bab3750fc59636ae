"""Encoding: a step's samples as one batch of a model, their images decoded, those that cannot be named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mmneuron_lens.batching.batches import rows_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.prompting import Prompt, model_kind, prompt_of
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.frames import Frames, middle, strip
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch


def encode(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    problems: Problems | None = None,
    opened: Opener = open_images,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
) -> tuple[Batch | None, list[Sample]]:
    """A batch of the samples whose images can be decoded (None if there is none), and these samples.

    - prompt: which of the paper's prompts.
    - problems: where the other samples are named; without it the first raises `InvalidValue`.
    - opened: decodes a sample's images, or has them decoded already.
    - frames: what a model is shown of several images: "fit", the images of the sample (a model of one image, the
      middle one), or "strip", all of them side by side as one. Which of them fit is said before, by
      `frames.with_frames_that_fit`.
    - prompt_form: the frame of the evaluation prompt, see `chat.form_of`.
    """
    pictures, given, texts, kept = [], [], [], []
    for sample in samples:
        decoded = opened(sample, problems)
        if decoded is not None:
            seen, files = shown(lens, sample, decoded, frames)
            pictures.append(seen)
            given.append(files)
            texts.append(prompt_of(lens, sample, prompt, len(seen), prompt_form))
            kept.append(sample)
    if not kept:
        return None, []
    batch = lens.encode(pictures, texts)
    # What would travel to a server is the files themselves, not the decoded pictures.
    return replace(batch, given=(tuple(given), batch.given[1])), kept


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
    rows, given, kept = [], [], []
    for some in rows_of(samples, at_most):
        decoded = opened(some[0], problems)
        if decoded is None:
            # Each question of an image that cannot be read is a problem of its own.
            for sample in some[1:]:
                opened(sample, problems)
            continue
        seen, files = shown(lens, some[0], decoded, frames)
        rows.append((seen, [prompt_of(lens, sample, prompt, len(seen), prompt_form) for sample in some]))
        given.append(files)
        kept += some
    if not rows:
        return None, []
    batch = lens.pack(rows, cut=True)
    return replace(batch, given=(tuple(given), batch.given[1])), kept


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
