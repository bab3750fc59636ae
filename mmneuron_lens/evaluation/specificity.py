"""Specificity: whether the neurons of a domain matter to its own questions more than to those of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import polars as pl
from scipy.stats import permutation_test

from mmneuron_lens.artifacts.comparison import OFF, NeuronComparison
from mmneuron_lens.evaluation.beyond_random import Numbers, beyond_random, with_interval

FLIPS = 9999
"""Sign flips of a test, where there are not fewer in all; with 25 cells Holm asks for p below 0.002."""


def cross_matrix_of(comparison: NeuronComparison, fraction: float, seed: int = 0) -> pl.DataFrame:
    """The corrected cross-domain matrix: D_ij, the change on questions of domain j with the neurons of i off, less the
    mean of as many random ones; a row per method and cell.

    Columns: model, method, neurons_of, domain, change, change_low, change_high (nats, 95 % over questions), p (of a
    two-sided sign-flip test over questions), p_holm (Holm's, over the cells of the method), questions. Cells whose
    questions were not asked, or without draws, are left out.
    """
    rows: list[dict[str, Any]] = []
    for method in comparison.methods:
        cells = _cells(comparison, method, fraction)
        tested = {pair: sign_flip(values, seed) for pair, values in cells.items()}
        corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
        for (own, domain), values in cells.items():
            told = {"model": comparison.model, "method": method, "neurons_of": own, "domain": domain}
            told |= with_interval("change", values, seed=seed)
            told |= {"p": tested[own, domain], "p_holm": corrected[own, domain], "questions": len(values)}
            rows.append(told)
    return pl.DataFrame(rows, schema=MATRIX, orient="row")


MATRIX: dict[str, Any] = {
    **dict.fromkeys(("model", "method", "neurons_of", "domain"), pl.String()),
    **dict.fromkeys(("change", "change_low", "change_high", "p", "p_holm"), pl.Float64()),
    "questions": pl.Int64(),
}
"""Columns of `cross_matrix_of`."""


def specificities(comparison: NeuronComparison, fraction: float, seed: int = 0) -> pl.DataFrame:
    """S_i = D_ii - mean over j != i of D_ij, by method and domain: below 0 where neurons matter to their own domain
    more than to others.

    Columns: model, method, domain, specificity, specificity_low, specificity_high: nats, with the 95 % interval that
    redraws the questions of every domain. Only where the questions of every domain were asked.
    """
    rows: list[dict[str, Any]] = []
    for method in comparison.methods:
        cells = _cells(comparison, method, fraction)
        for own in comparison.domains:
            row = [cells.get((own, domain), numpy.zeros(0)) for domain in comparison.domains]
            if len(row) < 2 or not all(len(one) for one in row):
                continue
            here = comparison.domains.index(own)
            number = len(row)
            # The mean of these groups' means is the own mean less the mean of the others'.
            scaled = [one * (number if place == here else -number / (number - 1)) for place, one in enumerate(row)]
            told = {"model": comparison.model, "method": method, "domain": own}
            rows.append(told | with_interval("specificity", *scaled, seed=seed))
    return pl.DataFrame(rows, schema=SPECIFICITIES, orient="row")


SPECIFICITIES: dict[str, Any] = {
    **dict.fromkeys(("model", "method", "domain"), pl.String()),
    **dict.fromkeys(("specificity", "specificity_low", "specificity_high"), pl.Float64()),
}
"""Columns of `specificities`."""


def sign_flip(values: Numbers, seed: int = 0) -> float:
    """The p of the mean of paired differences under flips of their signs, two-sided; exact where there are few.

    1 for fewer than two of them: a single difference is as large with its sign flipped.
    """
    if len(values) < 2:
        return 1.0
    tested = permutation_test(
        (values,),
        numpy.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        batch=max(1, 2_000_000 // max(1, len(values))),
        rng=numpy.random.default_rng(seed),
    )
    return float(tested.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each of these p: the smallest level at which its step-down procedure would reject it."""
    order = numpy.argsort(values, kind="stable")
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * float(values[place])))
        adjusted[int(place)] = largest
    return adjusted


def _cells(comparison: NeuronComparison, method: str, fraction: float) -> dict[tuple[str, str], Numbers]:
    """Each question's change beyond random, by whose neurons are off and whose questions are asked."""
    found: dict[tuple[str, str], Numbers] = {}
    for place, one in enumerate(comparison.conditions):
        if (one.method, one.fraction, one.strength) != (method, fraction, OFF):
            continue
        for domain in comparison.domains:
            values = beyond_random(comparison, place, domain)
            if len(values):
                found[one.domain, domain] = values
    return found
