"""A folder of corpora, one subfolder each in its published layout, and the splits that the paper's stages read.

    FOLDER/vqav2  FOLDER/rsvqa  FOLDER/pmc_vqa  FOLDER/docvqa  FOLDER/lingoqa

What lies in a subfolder is said at the top of the reader's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmneuron_lens.corpora import docvqa, lingoqa, pmc_vqa, rsvqa, vqav2
from mmneuron_lens.corpora.parts import Part
from mmneuron_lens.corpora.records import BadRecord, RecordProblems
from mmneuron_lens.corpora.rows import CorpusError
from mmneuron_lens.corpora.sample import Sample


@dataclass(frozen=True)
class Published:
    """A corpus of the paper.

    - folder: its subfolder.
    - name: in tables, and for its official score.
    - splits: as published.
    - read: its reader, of a folder and a split; what is skipped goes into the problems it is given.
    - parts: what the paper's stages need of it in a folder.
    - train, evaluation: the splits that neurons are identified and models evaluated on.
    """

    folder: str
    name: str
    splits: tuple[str, ...]
    read: Callable[[Path, str, RecordProblems], Iterator[Sample]]
    parts: Callable[[Path], tuple[Part, ...]]
    train: str = "train"
    evaluation: str = "val"


PUBLISHED = {
    "common": Published("vqav2", "VQAv2", vqav2.SPLITS, vqav2.read, lambda _: vqav2.PARTS),
    "remote_sensing": Published("rsvqa", "RSVQA-HR", rsvqa.SPLITS, rsvqa.read, lambda _: rsvqa.PARTS),
    "medical": Published("pmc_vqa", "PMC-VQA", pmc_vqa.SPLITS, pmc_vqa.read, pmc_vqa.parts_of, evaluation="test"),
    "document": Published("docvqa", "DocVQA", docvqa.SPLITS, docvqa.read, lambda _: docvqa.PARTS),
    "auto_driving": Published("lingoqa", "LingoQA", lingoqa.SPLITS, lingoqa.read, lambda _: lingoqa.PARTS),
}
"""By domain, in the paper's order (Table 4)."""


@dataclass(eq=False)
class PublishedCorpus:
    """One split of a corpus. Each iteration reads the files anew, record by record, and starts `problems` anew."""

    domain: str
    folder: Path
    split: str
    problems: RecordProblems = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.problems = RecordProblems(self.folder)

    @property
    def name(self) -> str:
        return PUBLISHED[self.domain].name

    def __iter__(self) -> Iterator[Sample]:
        self.problems = RecordProblems(self.folder)
        return self.read(self.problems)

    def read(self, problems: RecordProblems) -> Iterator[Sample]:
        """The samples, one at a time; what is skipped is named in `problems`, and so is a split without a record."""
        before = problems.rows, len(problems)
        yield from PUBLISHED[self.domain].read(self.folder, self.split, problems)
        if before == (problems.rows, len(problems)):
            says = "there is not one record in its files; download them again."
            problems.keep(BadRecord(self.folder, 0, says, f"{self.name} {self.split}"))


def corpora_in(folder: str | Path) -> dict[str, Published]:
    """The corpora that have a subfolder in a folder, by domain in the paper's order."""
    return {domain: one for domain, one in PUBLISHED.items() if (Path(folder) / one.folder).is_dir()}


def read_corpora(folder: str | Path, split: str) -> dict[str, PublishedCorpus]:
    """The corpora that lie in a folder, by domain in the paper's order; samples come when one is iterated.

    - split: "train", "evaluation" (each corpus's own: val, for PMC-VQA test), or a split as published, which then only
      those corpora give that have it.

    Raises `CorpusError` when there is no such folder or no corpus with that split.
    """
    folder = Path(folder)
    there = corpora_in(folder)
    if not there:
        what = "holds no corpus" if folder.is_dir() else "is not a folder"
        expected = ", ".join(one.folder for one in PUBLISHED.values())
        raise CorpusError(f"{folder} {what}; give one with subfolders {expected}.")
    found = {}
    for domain, one in there.items():
        name = one.evaluation if split == "evaluation" else split
        if name in one.splits:
            found[domain] = PublishedCorpus(domain, folder / one.folder, name)
    if not found:
        choices = dict.fromkeys(["train", "evaluation", *(name for one in there.values() for name in one.splits)])
        raise CorpusError(f"no corpus in {folder} has a split {split!r}; choose from {', '.join(choices)}.")
    return found
