"""Tables as LaTeX, for papers: `booktabs` rules, numbers as they are shown on the page."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mmneuron_lens.report.tables import heading, shown

_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {one: f"\\{one}" for one in "&%$#_{}"}
_ESCAPES |= {"−": "$-$", "–": "--", "…": r"\ldots{}", "†": r"\dag{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def latex(frame: pl.DataFrame, caption: str, decimals: int | None = None, notes: Sequence[str] = ()) -> str:
    """A `table` environment with the frame: text to the left, numbers to the right. Needs `\\usepackage{booktabs}`.

    - decimals: of every fraction; if None those of its column, see `tables.shown`.
    - notes: a line each, small, below the table.
    """
    columns = "".join("r" if kind.is_numeric() else "l" for kind in frame.schema.values())
    head = " & ".join(escaped(heading(name)) for name in frame.columns)
    rows = [
        " & ".join(escaped(shown(value, name, decimals)) for name, value in row.items())
        for row in frame.iter_rows(named=True)
    ]
    body = "".join(f"{row} \\\\\n" for row in rows)
    below = "".join(f"\\par\\footnotesize {escaped(note)}\n" for note in notes)
    return (
        "% \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{escaped(caption)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        f"{head} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n{below}\\end{{table}}\n"
    )


def escaped(text: str) -> str:
    """Text in which LaTeX reads no command."""
    return "".join(_ESCAPES.get(one, one) for one in text)
