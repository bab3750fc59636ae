"""The heatmap of Figure 6 as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmneuron_lens.report.figures import Theme, themed
from mmneuron_lens.report.heat import SCALES, Heat, colour
from mmneuron_lens.report.lettering import lettered


def heat_figure(heats: Sequence[tuple[str, Heat]], theme: Theme = "light") -> Figure:
    """The heatmaps side by side, each with its title. Characters that the font lacks are written by code point."""
    with themed(theme):
        rows = max(len(heat.rows) for _, heat in heats)
        figure = Figure(figsize=(6.2 * len(heats), 0.34 * rows + 1.0), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, (title, heat) in zip(figure.subplots(1, len(heats), squeeze=False)[0], heats, strict=True):
            panel.set_title(lettered(title))
            panel.set_xlim(0, max(map(len, heat.words)))
            panel.set_ylim(len(heat.rows), 0)
            for row, (words, probabilities) in enumerate(zip(heat.words, heat.probabilities, strict=True)):
                for rank, (word, value) in enumerate(zip(words, probabilities, strict=True)):
                    panel.add_patch(_cell(rank, row, colour(value, theme), SCALES[theme].zero))
                    shown = lettered(word if len(word) <= 12 else f"{word[:11]}…")
                    middle = {"ha": "center", "va": "center", "fontsize": 8, "color": SCALES[theme].text}
                    panel.text(rank + 0.5, row + 0.5, shown, **middle)
            panel.set_yticks([row + 0.5 for row in range(len(heat.rows))], map(lettered, heat.rows))
            ranks = range(max(map(len, heat.words)))
            panel.set_xticks([rank + 0.5 for rank in ranks], [f"Top {rank + 1}" for rank in ranks])
            panel.tick_params(length=0)
        return figure


def diverging(theme: Theme) -> LinearSegmentedColormap:
    """From −1 over the theme's paper at 0 to 1; `SCALES[theme].text` can be read on all of it."""
    scale = SCALES[theme]
    return LinearSegmentedColormap.from_list("diverging", [scale.minus, scale.zero, scale.one])


def _cell(column: int, row: int, fill: str, edge: str) -> Rectangle:
    return Rectangle((column, row), 1, 1, facecolor=fill, edgecolor=edge, linewidth=1.5)
