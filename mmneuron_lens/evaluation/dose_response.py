"""Dose-response: the change of the answers as a domain's neurons are turned down and up, beside random ones."""

from __future__ import annotations

from typing import Any

import polars as pl

from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.evaluation.beyond_random import beyond_random, drawn, measured, with_interval

DOSES: dict[str, Any] = {
    **dict.fromkeys(("model", "method", "domain"), pl.String()),
    **{"fraction": pl.Float64(), "strength": pl.Float64(), "questions": pl.Int64()},
    **dict.fromkeys(
        (f"{name}{end}" for name in ("change", "random", "difference") for end in ("", "_low", "_high")), pl.Float64()
    ),
}
"""Columns of `doses`."""


def doses(comparison: NeuronComparison, seed: int = 0) -> pl.DataFrame:
    """A row per method, domain, fraction and strength, at the fractions where neurons were turned up: model, method,
    domain, fraction, strength, questions; change, random and difference of the own answers' log-probability in nats,
    each with its 95 % interval over questions as `_low` and `_high`. At strength 0 nothing changes.

    Source: HONES (arXiv 2604.17941), the dose-response.
    """
    turned = {one.fraction for one in comparison.conditions if one.strength > 0}
    rows: list[dict[str, Any]] = []
    for place, one in enumerate(comparison.conditions):
        if one.draw or one.fraction not in turned:
            continue
        own = measured(comparison, place, one.domain)
        told: dict[str, Any] = {"model": comparison.model, "method": one.method, "domain": one.domain}
        told |= {"fraction": one.fraction, "strength": one.strength, "questions": len(own)}
        told |= with_interval("change", own, seed=seed)
        told |= with_interval("random", drawn(comparison, place, one.domain), seed=seed)
        rows.append(told | with_interval("difference", beyond_random(comparison, place, one.domain), seed=seed))
    return pl.DataFrame(rows, schema=DOSES, orient="row").sort("method", "domain", "fraction", "strength")
