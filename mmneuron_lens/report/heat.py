"""The heatmap of Figure 6: candidates for the next token, a row a layer, coloured by probability from white to blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.report.figures import Theme, themed

BLUE = (8, 69, 148)
"""The colour of probability 1; 0 is white, in both themes, as a heatmap's scale should not turn round."""


@dataclass(frozen=True)
class Heat:
    """Words and their probabilities, [row][rank], best first."""

    rows: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]


def heat_of(trace: LensTrace, position: int, even: bool = False) -> Heat:
    """A position of a question as in Figure 6: a row a layer, a column a rank. even: layers 2, 4, ... only."""
    rows = trace.rows(position, even)
    return Heat(*(tuple(row[part] for row in rows) for part in range(3)))


def colour(probability: float) -> str:
    """White to blue, as `#rrggbb`."""
    share = min(max(probability, 0.0), 1.0)
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in BLUE)


def ink(probability: float) -> str:
    """Text that can be read on `colour(probability)`."""
    return "#ffffff" if probability > 0.5 else "#1d1f23"


def table(heat: Heat, caption: str = "") -> str:
    """The heatmap as an HTML table, the last layer at the bottom; any script and any theme can show its words."""
    ranks = max(map(len, heat.words), default=0)
    head = "".join(f'<th scope="col">Top {rank + 1}</th>' for rank in range(ranks))
    body = ""
    for name, words, probabilities in zip(heat.rows, heat.words, heat.probabilities, strict=True):
        cells = "".join(
            f'<td style="background:{colour(value)};color:{ink(value)};text-align:center" '
            f'title="{100 * value:.1f} %">{escape(word)}</td>'
            for word, value in zip(words, probabilities, strict=True)
        )
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return (
        f'<table class="heat"><caption>{escape(caption)}</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def heat_figure(heats: Sequence[tuple[str, Heat]], theme: Theme = "light") -> Figure:
    """The heatmaps side by side, each with its title. Characters that the font lacks are written by code point."""
    with themed(theme):
        rows = max(len(heat.rows) for _, heat in heats)
        figure = Figure(figsize=(6.2 * len(heats), 0.34 * rows + 1.0), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, (title, heat) in zip(figure.subplots(1, len(heats), squeeze=False)[0], heats, strict=True):
            panel.set_title(printable(title), parse_math=False)
            panel.set_xlim(0, max(map(len, heat.words)))
            panel.set_ylim(len(heat.rows), 0)
            for row, (words, probabilities) in enumerate(zip(heat.words, heat.probabilities, strict=True)):
                for rank, (word, value) in enumerate(zip(words, probabilities, strict=True)):
                    panel.add_patch(_cell(rank, row, colour(value)))
                    shown = printable(word if len(word) <= 12 else f"{word[:11]}…")
                    middle = {"ha": "center", "va": "center", "fontsize": 8, "color": ink(value)}
                    panel.text(rank + 0.5, row + 0.5, shown, parse_math=False, **middle)
            panel.set_yticks([row + 0.5 for row in range(len(heat.rows))], heat.rows)
            ranks = range(max(map(len, heat.words)))
            panel.set_xticks([rank + 0.5 for rank in ranks], [f"Top {rank + 1}" for rank in ranks])
            panel.tick_params(length=0)
        return figure


def printable(text: str) -> str:
    """The text with every character that DejaVu Sans lacks written as its code point."""
    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    return "".join(one if font.get_char_index(ord(one)) and one >= " " else f"U+{ord(one):04X}" for one in text)


def _cell(column: int, row: int, fill: str):
    from matplotlib.patches import Rectangle

    return Rectangle((column, row), 1, 1, facecolor=fill, edgecolor="#ffffff", linewidth=1.5)
