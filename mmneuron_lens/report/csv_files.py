"""Tables as CSV: what a spreadsheet would take for a formula is marked as text, and is what it was when read back."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from polars import selectors

TEXT = (
    *("model", "module", "neurons off in", "site", "domain", "neurons_of", "condition", "kind", "measure", "corpus"),
    *("definition", "scored by", "claim", "statement", "statistic", "unit", "verdict", "note", "corpus of the paper"),
)
"""Columns of text: a domain may be called 2024, and stays a name."""

LISTED = "; "

_FORMULA = r"^('*\s*[=+\-@\t\r\n＝＋－＠])"
"""How OWASP has it ("CSV injection"), behind any space and behind marks that a name has of its own."""


def csv(frame: pl.DataFrame) -> str:
    """The frame as CSV, floats in full precision, a list of texts as one text with `LISTED` between.

    Text that begins as a formula does (`=`, `+`, `-`, `@`, tab, line breaks; their full-width forms; after spaces) has
    `'` in front, in headings too. Numbers are written as they are, negative ones as well.
    """
    frame = frame.with_columns(pl.col(pl.List(pl.String)).list.join(LISTED))
    marked = frame.with_columns(selectors.string().str.replace(_FORMULA, "'${1}"))
    headings = pl.Series(frame.columns, dtype=pl.String).str.replace(_FORMULA, "'${1}")
    return marked.rename(dict(zip(frame.columns, headings, strict=True))).write_csv()


def read_csv(file: str | Path) -> pl.DataFrame:
    """A frame that `csv` wrote, with the names it had: columns of `TEXT` are text, whatever they look like."""
    marked = pl.read_csv(file, schema_overrides=dict.fromkeys(TEXT, pl.String), infer_schema_length=None)
    frame = marked.with_columns(selectors.string().str.replace(f"^'{_FORMULA[1:]}", "${1}"))
    headings = pl.Series(frame.columns, dtype=pl.String).str.replace(f"^'{_FORMULA[1:]}", "${1}")
    return frame.rename(dict(zip(frame.columns, headings, strict=True)))
