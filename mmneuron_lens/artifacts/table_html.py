"""Tables as Jupyter shows them: every row, where polars alone stops after ten, and no types of columns."""

from __future__ import annotations

import polars as pl


def table_html(frame: pl.DataFrame) -> str:
    """A frame as HTML with all of its rows and columns."""
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_column_data_types=True):
        return frame._repr_html_()  # pyright: ignore[reportPrivateUsage]
