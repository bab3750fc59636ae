"""What all figures share: themes, panels, PNG. No global state; the same frame, the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from interventions.errors import InvalidValue
from mmneuron_lens.report.lettering import FONT, lettered_titles

Theme = Literal["light", "dark"]

COLUMNS = 5
"""Of a legend, at most."""


@dataclass(frozen=True)
class Ink:
    """The colours of a theme that carry no data."""

    paper: str
    text: str
    quiet: str
    grid: str


INKS: dict[Theme, Ink] = {
    "light": Ink("#FFFFFF", "#1D1F23", "#62666D", "#E3E4E7"),
    "dark": Ink("#17191D", "#E7E8EA", "#A0A4AB", "#33363C"),
}


def png(figure: Figure) -> bytes:
    """The figure as PNG, 160 dots an inch, without date or software in it."""
    buffer = BytesIO()
    with matplotlib.rc_context(_style(INKS["light"])):
        figure.savefig(buffer, format="png", dpi=160, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def _style(ink: Ink) -> Any:
    return {
        **matplotlib.rcParamsDefault,
        "font.family": FONT,
        # `$` in a name is a dollar, not mathematics.
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.edgecolor": ink.quiet,
        "axes.labelcolor": ink.quiet,
        "axes.titlecolor": ink.text,
        "axes.facecolor": ink.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.facecolor": ink.paper,
        "grid.color": ink.grid,
        "text.color": ink.text,
        "xtick.color": ink.quiet,
        "ytick.color": ink.quiet,
        "lines.markersize": 4.5,
        "legend.frameon": False,
    }


@contextmanager
def themed(theme: Theme) -> Iterator[Ink]:
    """The style of the theme while drawing, and nothing that the caller's settings could change."""
    with matplotlib.rc_context(_style(INKS[theme])):
        yield INKS[theme]


def panels(titles: list[str], height: float, legend: list[Any], columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Panels one under the other, readable on a narrow screen, with one legend above them.

    - height: of a panel, in inches.
    - legend: matplotlib's handles.
    - columns: panels side by side, which then share their axes.

    Raises `InvalidValue` where there is no panel.
    """
    if not titles:
        raise InvalidValue("the frame has no rows to draw; give one with at least one module or site.")
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(7.0, height * rows + 0.45), layout=ConstrainedLayoutEngine(hspace=0.06))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=columns > 1, sharey=columns > 1).flatten().tolist()
    for panel in axes[len(titles) :]:
        panel.remove()
    axes = axes[: len(titles)]
    for panel, title in zip(axes, lettered_titles(titles), strict=True):
        panel.set_title(title)
    add_legend(figure, legend)
    return figure, axes


def add_legend(figure: Figure, handles: list[Any]) -> None:
    """The legend in as many columns as fit; where they are few, the figure grows by its rows."""
    style = {"loc": "outside upper left", "columnspacing": 1.2, "handletextpad": 0.4}
    for columns in range(COLUMNS, 0, -1):
        legend = figure.legend(handles=handles, ncols=columns, **style)
        box = legend.get_window_extent()
        if box.width > figure.bbox.width and columns > 1:
            legend.remove()
            continue
        if columns < COLUMNS:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
        return


def says_something(frame: pl.DataFrame, *columns: str) -> bool:
    """Whether a figure of these columns would show more than zeros."""
    return any(value for name in columns if name in frame.columns for value in frame[name].drop_nulls())
