"""Ablation: what answers with neurons off come to, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from mmneuron_lens.artifacts.answers import Answer
from mmneuron_lens.artifacts.official_scores import OfficialScores
from mmneuron_lens.artifacts.short_repr import short_repr
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.evaluation.accuracy import Scoring, against_random, cross_scores, is_right, scored_by, scores


@dataclass(frozen=True, eq=False)
class Ablation:
    """The answers of one model with its neurons off, and their official scores where the corpus has one."""

    answers: Sequence[Answer]
    official: OfficialScores | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def scoring(self) -> Scoring:
        """How answers are scored: by official scores, or by `is_right`."""
        return is_right if self.official is None else self.official.values

    @property
    def metrics(self) -> dict[str, str]:
        """The name of the score by domain."""
        return scored_by(self.answers) if self.official is None else self.official.metrics

    def to_frame(self) -> pl.DataFrame:
        """A row per module, condition and domain: model, module, condition, domain, accuracy, difference, low, high,
        questions. Accuracy in per cent; the difference to nothing off in points, with its 95 % interval.
        """
        return pl.DataFrame(scores(self.answers, self.scoring), infer_schema_length=None)

    def against_random(self) -> pl.DataFrame:
        """How much more the domain's neurons cost than as many random ones, in points, paired by question: model,
        module, domain, difference, low, high, questions.
        """
        return pl.DataFrame(against_random(self.answers, self.scoring), infer_schema_length=None)

    def cross(self) -> pl.DataFrame:
        """Neurons of one domain off, questions of another: as `to_frame`, with a column neurons_of."""
        return pl.DataFrame(cross_scores(self.answers, self.scoring), infer_schema_length=None)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())
