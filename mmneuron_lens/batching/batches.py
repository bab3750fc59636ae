"""Asking: samples to batches of a model, in an order that is a pure function of corpus and flags."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import bucket_of
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.folder import Problems, image_sizes, open_images
from mmneuron_lens.corpora.prompts import ModelKind
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch

Prompt = Literal["identification", "evaluation"]
Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps the pieces of a piece of work, named, for instance in a progress bar; it must yield them all, in order."""


def quietly(items: Sequence[Any], name: str) -> Iterable[Any]:
    """No progress shown."""
    return items


@dataclass(frozen=True)
class Sized:
    """A sample with what decides its place: the sha256 of its first image's file, its bucket, its pixels."""

    sample: Sample
    digest: str
    pixels: tuple[int, int]

    @property
    def bucket(self) -> int:
        return bucket_of(self.digest)


def sized(samples: Iterable[Sample], problems: Problems | None = None) -> list[Sized]:
    """Samples with their images' hashes and sizes, from files and headers; unreadable ones are named and left out."""
    known: dict[tuple[Path, ...], tuple[str, tuple[int, int]]] = {}
    found = []
    for sample in samples:
        if sample.images not in known:
            sizes = image_sizes(sample, problems)
            if sizes is None:
                continue
            # Height first: rows of tiles decide more than columns about the length of a LLaVA-NeXT prompt.
            area, tallest = sum(width * height for width, height in sizes), max(height for _, height in sizes)
            known[sample.images] = hashlib.sha256(sample.images[0].read_bytes()).hexdigest(), (area, tallest)
        found.append(Sized(sample, *known[sample.images]))
    return found


def batches(samples: Iterable[Sized], batch_size: int, buckets: bool = True) -> list[tuple[int, list[Sample]]]:
    """Batches with their bucket, samples of like size together. No batch mixes buckets (unless `buckets` is False;
    the bucket is then 0). Sorted by bucket, size, image and id, whatever the order given.

    Raises `ValueError` for a batch size below 1.
    """
    if batch_size < 1:
        raise InvalidValue(f"batch size is {batch_size}; it must be 1 or more.")

    def place(one: Sized) -> tuple[Any, ...]:
        return (one.bucket if buckets else 0, one.pixels, one.digest, one.sample.id)

    made: list[tuple[int, list[Sample]]] = []
    for one in sorted(samples, key=place):
        bucket = place(one)[0]
        if not made or made[-1][0] != bucket or len(made[-1][1]) == batch_size:
            made.append((bucket, []))
        made[-1][1].append(one.sample)
    return made


def rows_of(samples: Sequence[Sample], at_most: int) -> list[list[Sample]]:
    """Neighbouring samples with the same images as one row, at most so many questions in each."""
    made: list[list[Sample]] = []
    for sample in samples:
        if not made or made[-1][0].images != sample.images or len(made[-1]) == at_most:
            made.append([])
        made[-1].append(sample)
    return made


def model_kind(lens: Lens) -> ModelKind:
    """Which of the two published prompts a model is asked with: does `<image>` stand in its text?"""
    return "llava-next" if lens.architecture.facts["images_in_text"] else "instructblip"


def prompt_of(lens: Lens, sample: Sample, prompt: Prompt) -> str:
    """A sample's prompt, with one `<image>` line for each of its images where images stand in the text."""
    kind = model_kind(lens)
    if prompt == "identification":
        text = prompts.identification(kind, sample.question)
    elif prompt == "evaluation":
        text = prompts.evaluation(kind, sample.question, sample.options, sample.domain)
    else:
        raise InvalidValue(f"unknown prompt {prompt!r}; choose from identification, evaluation.")
    return text.replace("<image>\n", "<image>\n" * len(sample.images), 1) if kind == "llava-next" else text


def encode(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    problems: Problems | None = None,
    opened: Opener = open_images,
) -> tuple[Batch | None, list[Sample]]:
    """A batch of the samples whose images can be decoded, and these samples; the others are named in `problems`.

    A model of one image a question is given the middle one of several, as the paper does with video frames.
    `opened` decodes a sample's images, or has them decoded already.
    """
    pictures, files, kept = [], [], []
    for sample in samples:
        decoded = opened(sample, problems)
        if decoded is not None:
            shown = _shown(lens, len(decoded))
            pictures.append(decoded[shown])
            files.append(sample.images[shown])
            kept.append(sample)
    if not kept:
        return None, []
    batch = lens.encode(pictures, [prompt_of(lens, sample, prompt) for sample in kept])
    # What would travel to a server is the files themselves, not the decoded pictures.
    return replace(batch, given=(tuple(files), batch.given[1])), kept


def _shown(lens: Lens, count: int) -> slice:
    """Which of a sample's images a model is shown."""
    return slice(count // 2, count // 2 + 1) if model_kind(lens) == "instructblip" else slice(None)


def encode_packed(
    lens: Lens,
    samples: Sequence[Sample],
    prompt: Prompt,
    at_most: int,
    problems: Problems | None = None,
    opened: Opener = open_images,
) -> tuple[Batch | None, list[Sample]]:
    """As `encode`, with questions of the same images packed, at most so many in a row; for reads that sum."""
    rows, files, kept = [], [], []
    for some in rows_of(samples, at_most):
        pictures = opened(some[0], problems)
        if pictures is None:
            # Each question of an image that cannot be read is a problem of its own.
            for sample in some[1:]:
                opened(sample, problems)
            continue
        shown = _shown(lens, len(pictures))
        rows.append((pictures[shown], [prompt_of(lens, sample, prompt) for sample in some]))
        files.append(some[0].images[shown])
        kept += some
    if not rows:
        return None, []
    batch = lens.pack(rows, cut=True)
    return replace(batch, given=(tuple(files), batch.given[1])), kept


def model_name(lens: Lens) -> str:
    """The name a model has in artifacts and tables."""
    return lens.name


def file_name(model: str) -> str:
    """A model's name as a file name: `llava-next` for an embedded one, `owner--name` for a hub id."""
    return model.removeprefix("embedded/").replace("/", "--")


def model_facts(lens: Lens) -> dict[str, Any]:
    """What identifies a model in provenance: `Model.facts`."""
    return dict(lens.model.facts())
