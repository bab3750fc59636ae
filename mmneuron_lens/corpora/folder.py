"""A corpus as a user brings it: a folder of images with a `questions.jsonl`, one JSON object a line.

    {"domain": "medical", "image": "images/001.png", "question": "Which organ is shown?", "answer": "heart"}

`images` (a list) may stand in place of `image`, and `answer` may be a list of accepted answers. Optional: `id`, `kind`
(the corpus's own type of question), `options` (texts without letters; the answer is then the letter). A domain may have
any name. Paths go down from the folder; links on the way are followed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.row_reader import RowReader
from mmneuron_lens.corpora.rows import BadRow, CorpusError, of_a_row, quote
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.corpora.text_files import cut_lines, open_text
from mmneuron_lens.wire import images

QUESTIONS = "questions.jsonl"

KEPT = 100_000
"""Lines whose reason is kept; the others are only counted, so that memory stays bounded."""

TOGETHER = 2**27
"""Pixels that are held decoded at one time: those of one batch, and of the images of one question."""


@dataclass(frozen=True)
class Problem:
    """A line that is skipped.

    - file, line: where it stands, lines from 1.
    - says: what is wrong with it, and what to do.
    - rows: how many it held.
    """

    file: Path
    line: int
    says: str
    rows: int = field(default=1, kw_only=True)

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.says}"


@dataclass(eq=False)
class Problems:
    """The rows of one corpus that are skipped, in the order they were found, each once.

    - file: that they stand in.
    - rows: all that were read, good ones too.
    - lines: the line of every good row by its sample's id, so that an image which turns out to be truncated when it is
      decoded is named with its line too.
    - notes: what is good but may not be meant, a line each.
    - more: rows behind the first `KEPT` lines, which are only counted.
    """

    file: Path
    rows: int = 0
    found: list[Problem] = field(default_factory=list[Problem])
    lines: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])
    named: set[int] = field(default_factory=set[int], repr=False)
    more: int = field(default=0, kw_only=True)

    def add(self, line: int, says: str, rows: int = 1) -> None:
        """Names a line that held so many rows; one that is already named keeps its first reason.

        - line: from 1. says: what is wrong with it. rows: that it held.
        """
        if line in self.named:
            return
        self.named.add(line)
        if len(self.found) < KEPT:
            self.found.append(Problem(self.file, line, says, rows=rows))
        else:
            self.more += rows

    def add_sample(self, sample: Sample, says: str) -> None:
        """Names the row that a sample came from; `says` is what is wrong with it."""
        self.add(self.lines[sample.id], says)

    def __len__(self) -> int:
        return sum(one.rows for one in self.found) + self.more

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def __str__(self) -> str:
        counted = f"{len(self)} of {self.rows} rows skipped"
        listed = [f"{counted}:", *map(str, self.found)] if self.found else [f"{counted}."]
        more = [f"and {self.more} more"] if self.more else []
        return "\n".join([*listed, *more, *self.notes])


def read_folder(folder: str | Path, domains: Container[str] | None = None) -> tuple[list[Sample], Problems]:
    """The good rows of a corpus as samples, in file order, and what is wrong with the others.

    Images are looked for, but opened only when they are used (`open_images`). Domains may have any names; those that
    differ in capitals or spaces alone are two, which a note says.

    - domains: only good rows of these, if given.

    Raises `CorpusError` when there is no such folder, no `questions.jsonl` in UTF-8 in it, or not one good row.
    """
    folder = Path(folder)
    file = folder / QUESTIONS
    if not file.is_file():
        what = "has no questions.jsonl" if folder.is_dir() else "is not a folder"
        raise CorpusError(f"{folder} {what}; write one JSON object a line with domain, image, question and answer.")
    problems = Problems(file)
    samples: list[Sample] = []
    reader = RowReader(folder.resolve())
    with open_text(file) as lines:
        for number, line in enumerate(cut_lines(lines), start=1):
            if not line.strip("\ufeff \t\r\n"):
                continue
            problems.rows += 1
            try:
                with of_a_row():
                    sample = reader.sample(line.removeprefix("\ufeff"), number)
                if sample.id in problems.lines:
                    first = problems.lines[sample.id]
                    raise BadRow(f"id {quote(sample.id)} is that of line {first} too; give each its own.")
            except BadRow as error:
                problems.rows += error.rows - 1
                problems.add(number, str(error), error.rows)
                continue
            problems.lines[sample.id] = number
            if domains is None or sample.domain in domains:
                samples.append(sample)
    if not samples:
        first = f" The first: {problems.found[0]}" if problems.found else ""
        raise CorpusError(f"{file} has no good row among {problems.rows}.{first}")
    problems.notes += _nearly_alike(sample.domain for sample in samples)
    return samples, problems


def open_images(sample: Sample, problems: Problems | None = None) -> list[Image.Image] | None:
    """The images of a sample as RGB, as a viewer shows them; None when one cannot be, which is named in `problems`.

    Without `problems` an image that cannot be decoded raises `InvalidValue` naming its file. So do several images of
    more than `TOGETHER` pixels.
    """
    if len(sample.images) > 1 and image_sizes(sample, problems) is None:
        return None
    try:
        return [images.decode(path) for path in sample.images]
    except ValueError as error:
        return _unreadable(sample, problems, error)


def image_sizes(sample: Sample, problems: Problems | None = None) -> list[tuple[int, int]] | None:
    """Width and height of each image that `open_images` gives, from headers alone; None and a problem as there."""
    try:
        sizes = [images.size(path) for path in sample.images]
        if len(sizes) > 1 and (pixels := sum(width * height for width, height in sizes)) > TOGETHER:
            raise ValueError(f"{len(sizes)} images of {pixels} pixels, where {TOGETHER} are held at one time.")
        return sizes
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


def _nearly_alike(names: Iterable[str]) -> list[str]:
    """A line for each group of domains whose names differ in capitals or spaces alone."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [
        f"domains {', '.join(map(quote, group))} differ in capitals or spaces alone, and are {len(group)} domains."
        for group in groups.values()
        if len(group) > 1
    ]


def _unreadable(sample: Sample, problems: Problems | None, error: Exception) -> None:
    if problems is None:
        raise InvalidValue(str(error)) from error
    problems.add_sample(sample, f"image cannot be decoded: {error} Replace the file, or remove the row.")
