"""Tables as Jupyter shows them: numbers as people read them, text as it is written, in the colours of the notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import polars as pl

from interventions.printable import printable
from mmneuron_lens.artifacts.digits import NONE, number

LONGEST = 400
"""Characters of a cell."""

MOST = 20
"""Rows of a value that is shown; its frame has them all."""

PLACES = ("layer", "neuron", "position", "rank", "draw")
"""Columns of numbers that are names: they have no commas."""

NO_MATH = '<div class="tex2jax_ignore mathjax_ignore">{}</div>'
"""In it Jupyter takes `$` for a dollar; mathematics could hold links that run scripts."""

# Colours are the notebook's own, so that its dark mode is followed.
STYLE = (
    "<style>.mm-shown{color:inherit;font-size:0.93em;line-height:1.45;max-width:100%}"
    ".mm-shown p{margin:0.15em 0}.mm-shown .mm-quiet{opacity:0.72}.mm-shown .mm-scroll{overflow-x:auto}"
    ".mm-shown table{border-collapse:collapse;margin:0.3em 0;color:inherit;background:none;border:0}"
    ".mm-shown tr{background:none!important}"
    ".mm-shown th,.mm-shown td{padding:0.18em 0.8em 0.18em 0;text-align:left;vertical-align:baseline;border:0;"
    "border-bottom:1px solid rgba(128,132,140,0.3);background:none;color:inherit;white-space:nowrap;max-width:34em;"
    "overflow:hidden;text-overflow:ellipsis}"
    ".mm-shown th{font-weight:500;opacity:0.72}.mm-shown td.n,.mm-shown th.n{text-align:right;"
    "font-variant-numeric:tabular-nums}.mm-shown code{background:none;color:inherit}</style>"
)


def table_html(frame: pl.DataFrame) -> str:
    """A frame as HTML with all of its rows and columns."""
    return shown_html(_table(frame))


def value_html(title: str, frame: pl.DataFrame, facts: str = "", then: Sequence[str] = (), most: int = MOST) -> str:
    """A value as Jupyter shows it: what it is, a table of at most so many rows, and what to call next.

    - facts: said behind the title. then: expressions of Python, the most useful first.
    """
    parts = [f"<p><b>{escape(printable(title))}</b> {escape(printable(facts))}</p>", _table(frame.head(most))]
    if len(frame) > most:
        parts.append(f'<p class="mm-quiet">{most} of {number(len(frame))} rows</p>')
    return shown_html("".join(parts), then)


def shown_html(html: str, then: Sequence[str] = ()) -> str:
    """HTML in the style of shown values, with what to call next below it."""
    calls = " · ".join(f"<code>{escape(printable(one))}</code>" for one in then)
    after = f'<p class="mm-quiet">next: {calls}</p>' if calls else ""
    return NO_MATH.format(f'<div class="mm-shown">{STYLE}{html}{after}</div>')


def _table(frame: pl.DataFrame) -> str:
    right = {name: ' class="n"' if kind.is_numeric() else "" for name, kind in frame.schema.items()}
    head = "".join(f"<th{right[name]}>{_text(name)}</th>" for name in frame.columns)
    rows = (
        "".join(f"<td{right[name]}>{_text(cell(value, name))}</td>" for name, value in row.items())
        for row in frame.iter_rows(named=True)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="mm-scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(value: Any, column: str = "") -> str:
    """What stands in a cell: a number as `digits.number` writes it, names in a list one after the other."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and column in PLACES:
        return str(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple | pl.Series):
        return ", ".join(map(str, value))
    return str(value)


def _text(text: str) -> str:
    shown = printable(text)
    return escape(shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…")
