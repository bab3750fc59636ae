"""Tables as Jupyter shows them: every row, where polars alone stops after ten, and no types of columns."""

from __future__ import annotations

import polars as pl

from interventions.printable import printable

LONGEST = 400
"""Characters of a cell."""

NO_MATH = '<div class="tex2jax_ignore mathjax_ignore">{}</div>'
"""In it Jupyter takes `$` for a dollar; mathematics could hold links that run scripts."""


def table_html(frame: pl.DataFrame) -> str:
    """A frame as HTML with all of its rows and columns, its text as it is written."""
    names = [name for name, kind in frame.schema.items() if kind == pl.String]
    shown = {name: [one if one is None else printable(one) for one in frame[name]] for name in names}
    frame = frame.with_columns(pl.Series(name, texts, pl.String) for name, texts in shown.items())
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_column_data_types=True, fmt_str_lengths=LONGEST):
        return NO_MATH.format(frame._repr_html_())  # pyright: ignore[reportPrivateUsage]
