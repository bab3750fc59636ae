"""Batches: samples in an order that is a pure function of corpus and settings, cut into steps of work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import bucket_of
from mmneuron_lens.batching.left_out import LeftOut, raise_none_left
from mmneuron_lens.corpora.content import image_digest
from mmneuron_lens.corpora.folder import TOGETHER, Problems, image_sizes
from mmneuron_lens.corpora.sample import Sample


@dataclass(frozen=True)
class Sized:
    """A sample with what decides its place: the sha256 of its first image's file, and its pixels (area, height).

    `weight` is what its images take of `TOGETHER`: their pixels, or the bytes of their files where these are more.
    """

    sample: Sample
    digest: str
    pixels: tuple[int, int]
    weight: int = 0

    @property
    def bucket(self) -> int:
        return bucket_of(self.digest)


@dataclass(frozen=True)
class Step:
    """One batch of samples. Results are added up within a group: the bucket of the images, or 0 where none is kept."""

    group: int
    samples: tuple[Sample, ...]


def sized(samples: Iterable[Sample], problems: Problems | None = None) -> list[Sized]:
    """Samples with their images' hashes and sizes, from files and headers; unreadable ones are named and left out.

    Raises `InvalidValue` with the first reason if there are samples and none remains.
    """
    samples, left = list(samples), LeftOut.of(problems)
    known: dict[tuple[Path, ...], tuple[str, tuple[int, int], int]] = {}
    found = []
    for sample in samples:
        if sample.images not in known:
            sizes = image_sizes(sample, left)
            if sizes is None:
                continue
            # Height first: rows of tiles decide more than columns about the length of a LLaVA-NeXT prompt.
            area, tallest = sum(width * height for width, height in sizes), max(height for _, height in sizes)
            weight = max(area, sum(path.stat().st_size for path in sample.images))
            known[sample.images] = image_digest(sample.images[0]), (area, tallest), weight
        found.append(Sized(sample, *known[sample.images]))
    if samples and not found:
        raise_none_left(samples, left.reason(samples[0]))
    return found


def steps_of(samples: Iterable[Sized], batch_size: int, buckets: bool = True) -> list[Step]:
    """Batches of at most `batch_size` samples, those of like size together.

    - buckets: no batch mixes buckets; without it all are in group 0.

    Sorted by bucket, size, image and id, whatever the order given. A batch ends sooner where the images of more
    samples would be of more than `TOGETHER` pixels. Raises `InvalidValue` for a batch size below 1.
    """
    _check(batch_size)
    return _cut([[one] for one in _ordered(samples, buckets)], batch_size, buckets)


def steps_of_whole_images(samples: Iterable[Sized], batch_size: int, at_most: int, rows: bool) -> list[Step]:
    """Like `steps_of`, but the questions of one image are not parted.

    - at_most: questions of one image that share a row.
    - rows: whether such questions share a row, so that one image's may be more than `batch_size`.
    """
    _check(batch_size)
    ordered = iter(found := _ordered(samples, True))
    parted = rows_of([one.sample for one in found], at_most if rows else min(at_most, batch_size))
    return _cut([[next(ordered) for _ in row] for row in parted], batch_size, True)


def _cut(rows: Iterable[Sequence[Sized]], batch_size: int, buckets: bool) -> list[Step]:
    """Neighbouring rows as batches; the samples of a row have the same images, which are held once."""
    made: list[tuple[int, list[Sample]]] = []
    held = 0
    for row in rows:
        group, held = row[0].bucket if buckets else 0, held + row[0].weight
        full = made and (len(made[-1][1]) + len(row) > batch_size or held > TOGETHER)
        if not made or made[-1][0] != group or full:
            made.append((group, []))
            held = row[0].weight
        made[-1][1].extend(one.sample for one in row)
    return [Step(group, tuple(some)) for group, some in made]


def rows_of(samples: Sequence[Sample], at_most: int) -> list[list[Sample]]:
    """Neighbouring samples with the same images as one row, at most so many questions in each."""
    made: list[list[Sample]] = []
    for sample in samples:
        if not made or made[-1][0].images != sample.images or len(made[-1]) == at_most:
            made.append([])
        made[-1].append(sample)
    return made


def ids_of(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The ids of samples, in order."""
    return tuple(sample.id for sample in samples)


def one_domain(samples: Sequence[Sample], what: str) -> str:
    """The domain that all samples are of. Raises `InvalidValue` for none or several; `what` says of which result."""
    domains = sorted({sample.domain for sample in samples})
    if len(domains) != 1:
        raise InvalidValue(f"{what} are of one domain, and these {len(samples)} samples are of {domains or 'none'}.")
    return domains[0]


def _ordered(samples: Iterable[Sized], buckets: bool) -> list[Sized]:
    return sorted(samples, key=lambda one: (one.bucket if buckets else 0, one.pixels, one.digest, one.sample.id))


def _check(batch_size: int) -> None:
    if batch_size < 1:
        raise InvalidValue(f"batch size is {batch_size}; it must be 1 or more.")
