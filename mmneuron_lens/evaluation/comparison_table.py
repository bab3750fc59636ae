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
    """The neurons of several methods on one model, each beside as many random ones.

    - comparison: every question under every condition.
    """

    comparison: NeuronComparison

    def __repr__(self) -> str:
        one = self.comparison
        shares = ", ".join(f"{100 * share:g}" for share in one.fractions)
        told = f"{', '.join(one.methods)} at {shares} % of {len(one.domains)} domains, {len(one.questions)} questions"
        return f"ComparisonTable({one.model}: {told})"

    def to_frame(self) -> pl.DataFrame:
        """A row per method, domain, fraction and whose questions are asked ("own", "others"), with the neurons off.

        Columns: model, method, domain, fraction, on, neurons, questions; change, random (the mean of the draws) and
        difference, of the answer's log-probability in nats; deviation and deviation_random, shares of the last hidden
        state's norm; accuracy, accuracy_random, accuracy_difference in points. Each with its 95 % interval over
        questions as `_low` and `_high`; null where it was not measured.
        """
        return curves(self.comparison)

    def areas(self) -> pl.DataFrame:
        """The area between a method's curve and that of its draws, over log10(fraction), in nats times decades: model,
        method, domain, on, area, area_low, area_high, first, last (fractions), questions. Below 0 where they matter.
        """
        return areas(self.comparison)

    def matrix(self, fraction: float | None = None) -> pl.DataFrame:
        """D_ij, the change on questions of domain j with the neurons of i off, less that of as many random ones.

        - fraction: of each module's neurons; 1 %, or the nearest to it, unless given.

        Columns: model, method, neurons_of, domain, change, change_low, change_high (nats), p (of a sign-flip test over
        questions), p_holm (over the cells of the method), questions.
        """
        return cross_matrix_of(self.comparison, fraction or fraction_of(self.comparison))

    def specificities(self, fraction: float | None = None) -> pl.DataFrame:
        """S_i = D_ii less the mean over j of D_ij, in nats: model, method, domain, specificity, specificity_low,
        specificity_high; below 0 where neurons matter to their own domain more than to others.

        - fraction: as of `matrix`.
        """
        return specificities(self.comparison, fraction or fraction_of(self.comparison))

    def doses(self) -> pl.DataFrame:
        """A row per method, domain, fraction and strength, where neurons were turned up: model, method, domain,
        fraction, strength, questions; change, random and difference in nats, with intervals. Source: arXiv 2604.17941.
        """
        return doses(self.comparison)

    def overlaps(self) -> pl.DataFrame:
        """How many neurons two methods both choose, and one method ("half") on two halves of the data: method, other,
        domain, fraction, shared, either, jaccard.
        """
        return overlaps_of(self.comparison)

    def claims(self, fraction: float | None = None) -> list[Claim]:
        """A claim per method and domain: "holds" where the neurons change the answers' log-probability by less than 0,
        and by less than as many random ones do, each with its whole 95 % interval.

        - fraction: as of `matrix`.
        """
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
