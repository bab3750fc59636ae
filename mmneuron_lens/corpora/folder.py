"""A corpus as a user brings it: a folder of images with a `questions.jsonl`, one JSON object a line.

    {"domain": "medical", "image": "images/001.png", "question": "Which organ is shown?", "answer": "heart"}

`images` (a list) may stand in place of `image`, and `answer` may be a list of accepted answers. Optional: `id`, `kind`
(the corpus's own type of question), `options` (texts without letters; the answer is then the letter). Paths are
relative to the folder and stay inside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.rows import BadRow, RowReader, quote
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.wire import images

QUESTIONS = "questions.jsonl"


class CorpusError(InvalidValue):
    """A folder is no corpus, or holds not one good row; the message says what to do."""


@dataclass(frozen=True)
class Problem:
    """One row that is skipped: where it stands, what is wrong with it, what to do."""

    file: Path
    line: int
    says: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.says}"


@dataclass(eq=False)
class Problems:
    """The rows of one corpus that are skipped, in the order they were found, each once.

    - file: that they stand in.
    - rows: all that were read, good ones too.
    - lines: the line of every good row by its sample's id, so that an image which turns out to be truncated when it is
      decoded is named with its line too.
    """

    file: Path
    rows: int = 0
    found: list[Problem] = field(default_factory=list[Problem])
    lines: dict[str, int] = field(default_factory=dict[str, int])
    named: set[int] = field(default_factory=set[int], repr=False)

    def add(self, line: int, says: str) -> None:
        """Names a row; a row that is already named keeps its first reason."""
        if line not in self.named:
            self.named.add(line)
            self.found.append(Problem(self.file, line, says))

    def add_sample(self, sample: Sample, says: str) -> None:
        """Names the row that a sample came from."""
        self.add(self.lines[sample.id], says)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def __str__(self) -> str:
        counted = f"{len(self)} of {self.rows} rows skipped"
        return "\n".join([f"{counted}:", *map(str, self.found)]) if self.found else f"{counted}."


def read_folder(folder: str | Path, domains: Sequence[str] | None = DOMAINS) -> tuple[list[Sample], Problems]:
    """The good rows of a corpus as samples, in file order, and what is wrong with the others.

    Images are looked for, but opened only when they are used (`open_images`).

    - domains: the names of domains that a row may have; None for any.

    Raises `CorpusError` when there is no such folder, no `questions.jsonl` in it, or not one good row.
    """
    folder = Path(folder)
    file = folder / QUESTIONS
    if not file.is_file():
        what = "has no questions.jsonl" if folder.is_dir() else "is not a folder"
        raise CorpusError(f"{folder} {what}; write one JSON object a line with domain, image, question and answer.")
    problems = Problems(file)
    samples: list[Sample] = []
    reader = RowReader(folder.resolve(), None if domains is None else tuple(domains))
    with open(file, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            problems.rows += 1
            try:
                sample = reader.sample(raw, number)
                if sample.id in problems.lines:
                    line = problems.lines[sample.id]
                    raise BadRow(f"id {quote(sample.id)} is that of line {line} too; give each its own.")
            except BadRow as error:
                problems.add(number, str(error))
                continue
            problems.lines[sample.id] = number
            samples.append(sample)
    if not samples:
        first = f" The first: {problems.found[0]}" if problems.found else ""
        raise CorpusError(f"{file} has no good row among {problems.rows}.{first}")
    return samples, problems


def open_images(sample: Sample, problems: Problems | None = None) -> list[Image.Image] | None:
    """The images of a sample as RGB, as a viewer shows them; None when one cannot be, which is named in `problems`.

    Without `problems` an image that cannot be decoded raises `InvalidValue` naming its file.
    """
    try:
        return [images.decode(path) for path in sample.images]
    except ValueError as error:
        return _unreadable(sample, problems, error)


def image_sizes(sample: Sample, problems: Problems | None = None) -> list[tuple[int, int]] | None:
    """Width and height of each image that `open_images` gives, from headers alone; None and a problem as there."""
    try:
        return [images.size(path) for path in sample.images]
    except ValueError as error:
        return _unreadable(sample, problems, error)


def some_of(
    samples: Iterable[Sample],
    images_per_domain: int | None = None,
    questions_per_image: int | None = None,
    skip_images: int = 0,
    seed: int = 0,
) -> list[Sample]:
    """Part of a corpus, domain by domain and image by image.

    - images_per_domain: in file order; None for all.
    - questions_per_image: drawn with a seed that belongs to the image, so that a larger part holds the same questions
      of the images they share; None for all.
    - skip_images: of each domain, before the first that is taken.
    - seed: of the questions' draw.
    """
    places: dict[str, dict[tuple[Path, ...], list[Sample]]] = {}
    for sample in samples:
        places.setdefault(sample.domain, {}).setdefault(sample.images, []).append(sample)
    chosen: list[Sample] = []
    for by_image in places.values():
        end = None if images_per_domain is None else skip_images + images_per_domain
        for asked in list(by_image.values())[skip_images:end]:
            count = len(asked) if questions_per_image is None else min(questions_per_image, len(asked))
            drawn = Random(f"{seed}:{asked[0].id}").sample(range(len(asked)), count)
            chosen += [asked[index] for index in sorted(drawn)]
    return chosen


def by_domain(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples by domain, those of the paper first and in its order."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.domain, []).append(sample)
    return {domain: found[domain] for domain in [*DOMAINS, *found] if domain in found}


def _unreadable(sample: Sample, problems: Problems | None, error: Exception) -> None:
    if problems is None:
        raise InvalidValue(str(error)) from error
    problems.add_sample(sample, f"image cannot be decoded: {error} Replace the file, or remove the row.")
