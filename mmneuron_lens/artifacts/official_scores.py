"""Each benchmark's official score of every answer, kept beside the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts.answers import AnswerKey
from mmneuron_lens.artifacts.artifact import KEY
from mmneuron_lens.artifacts.fitting import refuse_types, refuse_unless
from mmneuron_lens.artifacts.format import read_lines, unpacking, write_lines
from mmneuron_lens.artifacts.short_repr import short_repr

_COLUMNS = ("module", "condition", "neurons_of", "domain", "id")


@dataclass(frozen=True)
class OfficialScores:
    """Scores of one model's answers.

    - values: a score in [0, 1] for every answer that can be scored.
    - metrics: the score's name by domain.
    - notes: what could not be scored, and why.
    """

    values: dict[AnswerKey, float]
    metrics: dict[str, str]
    notes: tuple[str, ...] = ()

    kind = "official scores"

    def __repr__(self) -> str:
        return short_repr(self)

    def save(self, path: str | Path, key: Mapping[str, Any] | None = None) -> None:
        """Writes JSON lines to the file `path`; the same scores give the same bytes. Raises as `write_lines`.

        - key: facts that say what the scores are, for a run's store.
        """
        rows = [{**dict(zip(_COLUMNS, of, strict=True)), "score": value} for of, value in self.values.items()]
        # Pairs, so that the order of domains stays.
        metadata = {"metrics": list(self.metrics.items()), "notes": self.notes} | (
            {} if key is None else {KEY: dict(key)}
        )
        write_lines(path, self.kind, rows, metadata)

    @classmethod
    def load(cls, path: str | Path) -> OfficialScores:
        """Reads from the file `path` what `save` wrote; raises as `read_lines`."""
        return cls.load_with_key(path)[0]

    @classmethod
    def load_with_key(cls, path: str | Path) -> tuple[OfficialScores, dict[str, Any] | None]:
        """The scores in the file `path`, and the key that they were saved with, if any."""
        rows, metadata = read_lines(path, cls.kind)
        values: dict[AnswerKey, float] = {}
        with unpacking(path, cls.kind):
            for row in rows:
                values[row["module"], row["condition"], row["neurons_of"], row["domain"], row["id"]] = row["score"]
            made = cls(values, dict(metadata["metrics"]), tuple(metadata["notes"]))
            refuse_types(made)
            refuse_unless(len(values) == len(rows), "rows", "hold one score twice")
            refuse_unless(all(0 <= value <= 1 for value in values.values()), "score", "is below 0 or above 1")
        return made, metadata.get(KEY)
