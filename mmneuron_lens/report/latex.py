"""Tables as LaTeX, for papers: `booktabs` rules, numbers as they are shown on the page, in ASCII for every engine."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import polars as pl

from mmneuron_lens.report.tables import heading, shown

_ESCAPES = {one: f"\\{one}" for one in "&%$#_{}"}
_ESCAPES |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# OT1, TeX's own encoding, has other characters in these places.
_ESCAPES |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\texttt{\char34}"}
# Behind `\\` and the rules of booktabs these two are read as an argument and a star.
_ESCAPES |= {"[": "{[}", "*": "{*}"}
_ESCAPES |= {"−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}", "†": r"\dag{}", "×": r"$\times$", "±": r"$\pm$"}
_ESCAPES |= {"●": r"$\bullet$", "∞": r"$\infty$"}
_ESCAPES |= {raised: f"$^{{{one}}}$" for raised, one in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)}
_ESCAPES |= {"’": "'", "‘": "`", "“": "``", "”": "''", "→": r"$\to$", "°": r"\textdegree{}", "\u00a0": "~"}
_ESCAPES |= {"ß": r"\ss{}", "ı": r"\i{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}"}
_ESCAPES |= {"ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}"}

_LIGATURES = {"--", "''", "``", ",,", "?`", "!`"}
"""What TeX would print as one other character."""

_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": "."}
_ACCENTS |= {"\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c"}
"""Combining characters and the commands that put them on a letter."""


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
    """Text in which LaTeX reads no command, on one line, in ASCII.

    Letters with an accent become the accent's command; a character that no engine is sure to have becomes its code
    point: `U+65E5`.
    """
    written = ""
    for one in text:
        shown = _ESCAPES.get(one) or _letter(one)
        written += "{}" + shown if written[-1:] + shown[:1] in _LIGATURES else shown
    return written


def _letter(one: str) -> str:
    if one.isspace():
        return " "
    if one.isascii() and one.isprintable():
        return one
    letter, *accents = unicodedata.normalize("NFD", one)
    if letter.isascii() and letter.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS:
        dotless = f"\\{letter}" if letter in "ij" and accents[0] != "\u0327" else letter
        return f"\\{_ACCENTS[accents[0]]}{{{dotless}}}"
    return f"U+{ord(one):04X}"
