"""Claims as a table and as words: the statement, the number with its interval, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mmneuron_lens.artifacts.digits import interval, number
from mmneuron_lens.evaluation.findings import Claim, Finding

_TEXT = ("claim", "statement", "model", "statistic")
SCHEMA: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(_TEXT, pl.String),
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    **dict.fromkeys(("unit", "verdict", "note"), pl.String),
}
"""Columns of the table; value, low and high are in the finding's unit."""


def claims_table(claims: Sequence[Claim]) -> pl.DataFrame:
    """A row per claim and model, with the columns of `SCHEMA`."""
    rows = [
        {"claim": claim.number, "statement": claim.statement}
        | {name: getattr(finding, name) for name in SCHEMA if name not in ("claim", "statement")}
        for claim in claims
        for finding in claim.findings
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def measured(finding: Finding) -> str:
    """The number with its interval, as people read it: "3.50 [2.00, 4.10] layers"."""
    if finding.value is None:
        return "–"
    ends = [finding.value, finding.low, finding.high]
    if all(one is not None and float(one).is_integer() for one in ends):
        value, low, high = (number(int(one)) for one in ends if one is not None)
        text = f"{value} [{low}, {high}]"
    else:
        text = interval(*ends)
    return f"{text} {finding.unit}".strip()
