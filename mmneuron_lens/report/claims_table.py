"""Claims as a table and as words: the statement, the number with its interval, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mmneuron_lens.evaluation.findings import Claim, Finding
from mmneuron_lens.report.tables import shown

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
    """The number with its interval, as people read it: "3.50 [2 to 4.10] layers"."""
    if finding.value is None:
        return "–"
    text = _number(finding.value)
    if finding.low is not None and finding.high is not None:
        text += f" [{_number(finding.low)} to {_number(finding.high)}]"
    return f"{text} {finding.unit}".strip()


def _number(value: float) -> str:
    whole = float(value).is_integer() and abs(value) < 1e9
    return shown(int(value) if whole else value, decimals=2)
