"""Parts of a corpus as published: files and folders that are looked for, and asked for where they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmneuron_lens.corpora.rows import CorpusError


@dataclass(frozen=True)
class Part:
    """A file or folder of a corpus as published.

    - names: its possible names; the first that is there counts.
    - holds: what, in words.
    - source: where to get it.
    - splits: that need it.
    - archive: the file it comes packed in, "" if it comes as it is.
    """

    names: tuple[str, ...]
    holds: str
    source: str
    splits: tuple[str, ...]
    archive: str = ""

    def find(self, folder: Path) -> Path | None:
        """Where it lies in the corpus's folder, or None."""
        return next((folder / name for name in self.names if (folder / name).exists()), None)

    def missing(self, folder: Path) -> str:
        """What to do about a part that is not there, in one line."""
        names = " or ".join(self.names)
        if self.archive and (packed := next(folder.rglob(self.archive), None)):
            return f"{folder}: no {names} ({self.holds}); unpack {packed.relative_to(folder)}."
        packed = f" ({self.archive}, unpacked)" if self.archive else ""
        return f"{folder}: no {names} ({self.holds}); get it{packed} from {self.source}."

    def require(self, folder: Path) -> Path:
        """Where it lies. Raises `CorpusError` with what to do when it is not there."""
        found = self.find(folder)
        if found is None:
            raise CorpusError(self.missing(folder))
        return found


def check_split(corpus: str, split: str, splits: Sequence[str], why: str = "") -> None:
    """Raises `CorpusError` naming the splits of a corpus when it has no such one."""
    if split not in splits:
        raise CorpusError(f"{corpus} has no split {split!r}{why}; choose from {', '.join(splits)}.")
