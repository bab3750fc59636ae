"""A corpus that was read: samples in order, what was skipped, and which benchmarks score its domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

from interventions.errors import OutOfRange, UnknownName
from mmneuron_lens.corpora.folder import Problems, by_domain, some_of
from mmneuron_lens.corpora.sample import Sample


@dataclass(frozen=True, eq=False, repr=False)
class Corpus(Sequence[Sample]):
    """A sequence of samples; `corpus[0]` is a `Sample`, `corpus[2:5]` a `Corpus`.

    - name: as shown in artifacts and tables; no path.
    - samples: in the order they were read.
    - problems: what was skipped; images that turn out to be unreadable are named here too, later on. A part of a corpus
      shares them with the whole.
    - folder: that it was read from; of a hub data set the folder of its images.
    - official: by domain, the corpus whose official score marks its answers; empty for one's own corpora.
    """

    name: str
    samples: tuple[Sample, ...]
    problems: Problems
    folder: Path
    official: Mapping[str, str] = field(default_factory=dict[str, str])

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Corpus: ...
    def __getitem__(self, index: int | slice) -> Sample | Corpus:
        if isinstance(index, slice):
            return replace(self, samples=self.samples[index])
        try:
            return self.samples[index]
        except IndexError as error:
            raise OutOfRange(f"corpus {self.name} has no sample {index}; it has {len(self)}, from 0.") from error

    def by_domain(self) -> dict[str, list[Sample]]:
        """Samples by domain, those of the paper first and in its order."""
        return by_domain(self.samples)

    def some(
        self,
        images: int | None = None,
        questions_per_image: int | None = None,
        skip_images: int = 0,
        seed: int = 0,
    ) -> Corpus:
        """A part, domain by domain and image by image.

        - images: of each domain, in the corpus's order; None for all.
        - questions_per_image: drawn with a seed that belongs to the image, so that a larger part holds the same
          questions of the images they share; None for all.
        - skip_images: of each domain, before the first that is taken.
        - seed: of the questions' draw.

        Raises `OutOfRange` for a domain of which no image is left.
        """
        found = some_of(self.samples, images, questions_per_image, skip_images, seed)
        if emptied := set(self.by_domain()) - {sample.domain for sample in found}:
            there = {domain: len({one.images for one in self.by_domain()[domain]}) for domain in sorted(emptied)}
            counted = ", ".join(f"{domain} ({count})" for domain, count in there.items())
            raise OutOfRange(
                f"{self.name}: leaving out the first {skip_images} images leaves none of {counted}; leave out fewer, "
                "or name the other domains."
            )
        return replace(self, samples=tuple(found))

    def only(self, domains: str | Iterable[str]) -> Corpus:
        """The samples of these domains, in the corpus's order. Raises `UnknownName` for a domain that has none."""
        wanted = [domains] if isinstance(domains, str) else list(domains)
        there = self.by_domain()
        if absent := [one for one in wanted if one not in there]:
            raise UnknownName(f"{self.name} has no good row of {', '.join(absent)}; it has {', '.join(there)}.")
        official = {domain: corpus for domain, corpus in self.official.items() if domain in wanted}
        return replace(self, samples=tuple(one for one in self.samples if one.domain in wanted), official=official)

    def __repr__(self) -> str:
        counted = Counter(one.domain for one in self.samples)
        domains = ", ".join(f"{domain} {counted[domain]}" for domain in self.by_domain())
        return f"Corpus({self.name}: {len(self)} samples ({domains or 'none'}), {len(self.problems)} skipped)"
