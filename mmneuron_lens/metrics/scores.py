"""Scores: what a benchmark says about a model's answers, by question and together, as an artifact."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import read_artifact, write_artifact
from mmneuron_lens.artifacts.table_html import NO_MATH
from mmneuron_lens.metrics.intervals import Estimate, paired_difference


@dataclass(frozen=True)
class Scores:
    """One benchmark's score of one set of answers.

    - `ids`, `kinds`, `scores`: one entry a question; scores in [0, 1]. `details`: further columns of that length.
    - `overall`, `by_kind`: the mean over questions, all and of each kind, in per cent with intervals.
    - `extra`: what the benchmark reports beside it ("AA", "unparsed"), in per cent.
    - `skipped`: one line for each sample or answer that was not scored.
    - `corpus`, `metric`: names. `parameters`: of the metric and the intervals. `provenance`: what it was made from.
    """

    corpus: str
    metric: str
    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    scores: tuple[float, ...]
    overall: Estimate
    by_kind: dict[str, Estimate] = field(default_factory=dict)
    extra: dict[str, Estimate] = field(default_factory=dict)
    details: dict[str, list[Any]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def by_question(self) -> dict[str, float]:
        """The score of each question by its id."""
        return dict(zip(self.ids, self.scores, strict=True))

    def minus(self, other: Scores, of_kinds: bool = False, seed: int = 0) -> Estimate:
        """This condition's overall score minus another's of the same questions, in percentage points, paired.

        - other: the scores that are taken off.
        - of_kinds: the difference of the means of kinds (RSVQA's AA) instead.
        - seed: of the interval's resamples.

        Raises `InvalidValue` when the two are of different metrics, parameters or questions.
        """
        own, its = (self.metric, self.parameters), (other.metric, other.parameters)
        if own != its:
            raise InvalidValue(f"{own} and {its} cannot be compared; score both with the same metric and parameters.")
        kinds = dict(zip(self.ids, self.kinds, strict=True)) if of_kinds else None
        return paired_difference(self.by_question, other.by_question, kinds, seed)

    def save(self, path: str | Path) -> None:
        """Writes an artifact of kind "scores" to the file `path`."""
        metadata = asdict(self)
        scores = torch.tensor(metadata.pop("scores"), dtype=torch.float64, device="cpu")
        write_artifact(path, "scores", {"scores": scores}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Reads from the file `path` what `save` wrote; see `read_artifact` for what it refuses."""
        tensors, metadata = read_artifact(path, "scores")
        metadata |= {name: tuple(metadata[name]) for name in ("ids", "kinds", "skipped")}
        metadata |= {
            name: {key: Estimate(**value) for key, value in metadata[name].items()} for name in ("by_kind", "extra")
        }
        overall = Estimate(**metadata.pop("overall"))
        return cls(**metadata, overall=overall, scores=tuple(tensors["scores"].tolist()))

    def __str__(self) -> str:
        lines = [f"{self.corpus}: {self.metric} {self.overall}"]
        lines += [f"  {name}: {value}" for name, value in [*self.by_kind.items(), *self.extra.items()]]
        lines += [f"  skipped: {len(self.skipped)}"] if self.skipped else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = {self.metric: self.overall, **self.by_kind, **self.extra}
        cells = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
        )
        return NO_MATH.format(f"<table><caption>{escape(self.corpus)}, per cent</caption>{cells}</table>")
