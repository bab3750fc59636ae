"""What a folder of corpora holds: which parts are there, which are missing and where to get them, how records read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mmneuron_lens.corpora.folder import image_sizes, open_images
from mmneuron_lens.corpora.published import PUBLISHED, PublishedCorpus
from mmneuron_lens.corpora.records import BadRecord, RecordProblems
from mmneuron_lens.corpora.rows import CorpusError
from mmneuron_lens.echo import plain

LOOKED_AT = 1000
"""Good records of a split that are looked at unless more are asked for."""


@dataclass(frozen=True)
class Checked:
    """One corpus: its parts that are there, what to do about each that is not, and what its splits read as.

    - found: the parts that are there, by their paths in `folder`.
    - missing: what to do about each that is not, in one line.
    - read: by split, good samples and problems; a split whose parts are missing is not read.
    """

    domain: str
    name: str
    folder: Path
    found: tuple[str, ...]
    missing: tuple[str, ...]
    read: dict[str, tuple[int, RecordProblems]]

    @property
    def whole(self) -> bool:
        """Everything is there and nothing that was looked at is bad."""
        return not self.missing and all(
            samples and not len(problems) and not problems.unread for samples, problems in self.read.values()
        )


def check_corpora(folder: str | Path, records: int | None = LOOKED_AT, decode: bool = False) -> list[Checked]:
    """Checks the five corpora of the paper in a folder.

    - records: good records of each split to look at; None for all.
    - decode: decode images wholly, which alone finds truncated ones, not only their headers.

    Raises `CorpusError` when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        expected = ", ".join(one.folder for one in PUBLISHED.values())
        raise CorpusError(f"{folder} is not a folder; give one with subfolders {expected}.")
    return [_checked(domain, folder, records, decode) for domain in PUBLISHED]


def _checked(domain: str, folder: Path, records: int | None, decode: bool) -> Checked:
    one, place = PUBLISHED[domain], folder / PUBLISHED[domain].folder
    parts = one.parts(place)
    found = [(part, path) for part in parts if (path := part.find(place)) is not None]
    missing = [part for part in parts if part.find(place) is None]
    read = {}
    for split in (one.train, one.evaluation):
        if not any(split in part.splits for part in missing):
            read[split] = _look(PublishedCorpus(domain, place, split), records, decode)
    return Checked(
        domain,
        one.name,
        place,
        tuple(str(path.relative_to(place)) for _, path in found),
        tuple(part.missing(place) for part in missing),
        read,
    )


def _look(corpus: PublishedCorpus, records: int | None, decode: bool) -> tuple[int, RecordProblems]:
    count, problems = 0, RecordProblems(corpus.folder)
    try:
        for sample in islice(corpus.read(problems), records):
            readable = open_images(sample, problems) if decode else image_sizes(sample, problems)
            count += readable is not None
    except CorpusError as error:
        problems.keep(BadRecord(corpus.folder, 0, str(error), corpus.split))
    return count, problems


def exit_code(checked: Sequence[Checked]) -> int:
    """0 when every corpus is whole, else 1."""
    return 0 if all(one.whole for one in checked) else 1


def as_table(checked: Sequence[Checked]) -> Table:
    """One row a corpus: what is there, how its splits read, what is missing."""
    table = Table("Corpus", "Domain", "Found", "Read", "Missing", show_lines=True)
    for one in checked:
        read = [
            f"{split}: {samples} good, {len(problems)} bad" + (", the rest not read" if problems.unread else "")
            for split, (samples, problems) in one.read.items()
        ]
        table.add_row(
            plain(one.name),
            plain(one.domain),
            _lines(one.found),
            _lines(read),
            _lines(one.missing),
        )
    return table


def _lines(texts: Sequence[str]) -> Text:
    return Text("\n").join(map(plain, texts or ["nothing"]))


def problem_lines(checked: Sequence[Checked], shown: int = 10) -> list[str]:
    """The first few bad records of each split, one line each."""
    lines = []
    for one in checked:
        for split, (_, problems) in one.read.items():
            listed = list(problems)[:shown]
            lines += [f"{one.name} {split}: {problem}" for problem in listed]
            more = len(problems) - len(listed)
            lines += [f"{one.name} {split}: and {more} more"] if more > 0 else []
            lines += [f"{one.name} {split}: {part}" for part in problems.unread]
    return lines
