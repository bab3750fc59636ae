"""Images of a domain divided: those that identify neurons, and others whose questions are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mmneuron_lens.corpora.content import MISSING, image_digest
from mmneuron_lens.corpora.rows import CorpusError
from mmneuron_lens.corpora.sample import Sample


@dataclass(frozen=True)
class Division:
    """Questions by domain: `first` those that identify, `then` others; no image is in both, under whatever name.

    - notes: how it is otherwise than was wanted, a line each.
    """

    first: dict[str, list[Sample]]
    then: dict[str, list[Sample]]
    notes: list[str]


def divided(images: int, first: int | None, then: int | None) -> tuple[int, int]:
    """How many of two or more images identify, and how many others are answered.

    - first, then: how many are wanted; None for all that the other leaves.

    Where there are fewer than wanted, both get their share of what is there, at least one image each.
    """
    if first is None or then is None:
        wanted = then if first is None else first
        part = images // 2 if wanted is None or wanted >= images else wanted
        return (images - part, part) if first is None else (part, images - part)
    if first + then <= images:
        return first, then
    part = min(max(1, round(images * first / (first + then))), images - 1)
    return part, images - part


def divide(domains: Mapping[str, Sequence[Sample]], first: int | None, then: int | None) -> Division:
    """The questions of the first images of each domain, and those of the images after them.

    - first, then: images of a domain; see `divided`.

    Raises `CorpusError` for a domain whose images cannot be divided.
    """
    found = Division({}, {}, [])
    shares = {domain: _share(domain, samples, first, then, found.notes) for domain, samples in domains.items()}
    for domain, samples in domains.items():
        images = set(_images(samples)[: shares[domain][0]])
        found.first[domain] = [sample for sample in samples if sample.images in images]
    used = {digest for samples in found.first.values() for sample in samples for digest in _digests(sample.images)}
    for domain, samples in domains.items():
        before, wanted = shares[domain]
        others = (images for images in _images(samples)[before:] if used.isdisjoint(_digests(images)))
        images = set(islice(others, wanted))
        if not images:
            raise CorpusError(f"domain {domain}: every image identifies neurons, here or elsewhere; add others.")
        if len(images) < wanted:
            found.notes.append(f"{domain}: only {len(images)} images are answered; others identify neurons elsewhere.")
        found.then[domain] = [sample for sample in samples if sample.images in images]
    return found


def _share(
    domain: str, samples: Sequence[Sample], first: int | None, then: int | None, notes: list[str]
) -> tuple[int, int]:
    there = len(_images(samples))
    if there < 2:
        raise CorpusError(
            f"domain {domain} has one image, and no image may both identify neurons and be answered: add another, or "
            "leave the domain out."
        )
    share = divided(there, first, then)
    if first is not None and then is not None and share != (first, then):
        notes.append(
            f"{domain} has {there} images where {first} were to identify neurons and {then} others to be answered: "
            f"{share[0]} identify and {share[1]} are answered."
        )
    return share


def _images(samples: Sequence[Sample]) -> list[tuple[Path, ...]]:
    return list(dict.fromkeys(sample.images for sample in samples))


def _digests(images: Sequence[Path]) -> set[str]:
    return set(map(image_digest, images)) - {MISSING}
