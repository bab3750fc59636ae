"""ComparisonTable: what a comparison comes to, as tables."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.evaluation.beyond_random import fraction_of
from mmneuron_lens.evaluation.comparison_claims import comparison_claims
from mmneuron_lens.evaluation.dose_response import doses
from mmneuron_lens.evaluation.faithfulness import areas, curves
from mmneuron_lens.evaluation.findings import Claim
from mmneuron_lens.evaluation.specificity import cross_matrix_of, specificities


@dataclass(frozen=True, eq=False)
class ComparisonTable:
    """The neurons of several methods on one model, each beside as many random ones."""

    comparison: NeuronComparison

    def __repr__(self) -> str:
        one = self.comparison
        shares = ", ".join(f"{100 * share:g}" for share in one.fractions)
        told = f"{', '.join(one.methods)} at {shares} % of {len(one.domains)} domains, {len(one.questions)} questions"
        return f"ComparisonTable({one.model}: {told})"

    def to_frame(self) -> pl.DataFrame:
        """See `evaluation.faithfulness.curves`."""
        return curves(self.comparison)

    def areas(self) -> pl.DataFrame:
        """See `evaluation.faithfulness.areas`."""
        return areas(self.comparison)

    def matrix(self, fraction: float | None = None) -> pl.DataFrame:
        """See `evaluation.specificity.cross_matrix_of`; at 1 %, or the nearest to it, unless given."""
        return cross_matrix_of(self.comparison, fraction or fraction_of(self.comparison))

    def specificities(self, fraction: float | None = None) -> pl.DataFrame:
        """See `evaluation.specificity.specificities`; at 1 %, or the nearest to it, unless given."""
        return specificities(self.comparison, fraction or fraction_of(self.comparison))

    def doses(self) -> pl.DataFrame:
        """See `evaluation.dose_response.doses`."""
        return doses(self.comparison)

    def overlaps(self) -> pl.DataFrame:
        """How many neurons two methods both choose, and one method ("half") on two halves of the data: method, other,
        domain, fraction, shared, either, jaccard.
        """
        return overlaps_of(self.comparison)

    def claims(self, fraction: float | None = None) -> list[Claim]:
        """See `evaluation.comparison_claims.comparison_claims`."""
        return comparison_claims([self.comparison], fraction)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())


def overlaps_of(comparison: NeuronComparison) -> pl.DataFrame:
    """The overlaps of a comparison, with jaccard = shared / either, null of no neurons."""
    frame = pl.DataFrame(list(comparison.overlaps), schema=OVERLAPS)
    return frame.with_columns(pl.when(pl.col("either") > 0).then(pl.col("shared") / pl.col("either")).alias("jaccard"))


OVERLAPS = {
    **dict.fromkeys(("method", "other", "domain"), pl.String()),
    **{"fraction": pl.Float64(), "shared": pl.Int64(), "either": pl.Int64()},
}
"""Columns of the overlaps of a comparison."""
