"""Figures of a comparison: which method's neurons matter, its curves over sizes, its matrix, its dose-response."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Any

import numpy
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from mmneuron_lens.artifacts.digits import number
from mmneuron_lens.report.figures import Ink, Theme, add_legend, panels, themed
from mmneuron_lens.report.lettering import lettered, lettered_domains, lettered_titles
from mmneuron_lens.report.looks import line_looks

SIGNIFICANT = 0.05
"""Holm's p below which a cell of the matrix has a star."""

RANDOM = "as many random neurons"

APART = 1.045
"""By how much the points of methods at one fraction stand apart, as a factor."""


def curve_figure(frame: pl.DataFrame, holds: Collection[tuple[str, str, float]] = (), theme: Theme = "light") -> Figure:
    """Whose neurons matter: the curves of one model from `curves`, of the own questions, a panel a domain.

    A line a method with intervals; grey, with its interval as a band, as many random neurons.

    - holds: method, domain and fraction where the neurons matter more than random ones; filled there, hollow elsewhere.
    """
    with themed(theme) as ink:
        frame = frame.filter(pl.col("on") == "own").sort("fraction")
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = line_looks(frame["method"].unique(maintain_order=True).to_list())
        band = Patch(facecolor=ink.quiet, alpha=0.35, label=RANDOM)
        figure, axes = _grid([*lettered_domains(domains).values()], [*_legend(looks), band])
        fractions = frame["fraction"].unique().sort().to_list()
        for panel, domain in zip(axes, domains, strict=False):
            _ruled(panel, ink)
            for place, (method, look) in enumerate(looks.items()):
                here = frame.filter((pl.col("domain") == domain) & (pl.col("method") == method))
                _random_band(panel, here, ink)
                rows = [row for row in here.iter_rows(named=True) if row["change"] is not None]
                x = [row["fraction"] * APART ** (2 * place - len(looks) + 1) for row in rows]
                panel.plot(x, [row["change"] for row in rows], linewidth=1.3, color=look["color"], zorder=3)
                for at, row in zip(x, rows, strict=True):
                    filled = (method, domain, row["fraction"]) in holds
                    _point(panel, at, row, look, ink, filled)
            panel.set_xscale("log")
            panel.set_xlim(fractions[0] / 1.5, fractions[-1] * 1.5)
            panel.set_xticks(fractions, [f"{100 * one:g}" for one in fractions])
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.tick_params(axis="x", which="minor", length=0)
        figure.supxlabel("neurons off, per cent of each module", fontsize=9.5, color=ink.quiet)
        figure.supylabel("change of log-probability, nats", fontsize=9.5, color=ink.quiet)
        return figure


def _random_band(panel: Axes, rows: pl.DataFrame, ink: Ink) -> None:
    """What as many random neurons do: the mean as a line, its interval as a band; wide of a single fraction."""
    kept = rows.drop_nulls(["random", "random_low", "random_high"])
    x, y, low, high = (kept[name].to_list() for name in ("fraction", "random", "random_low", "random_high"))
    if len(x) == 1:
        x, y, low, high = [x[0] / 1.4, x[0] * 1.4], 2 * y, 2 * low, 2 * high
    panel.fill_between(x, low, high, color=ink.quiet, alpha=0.25, linewidth=0, zorder=1)
    panel.plot(x, y, color=ink.quiet, linewidth=1, zorder=2)


def _point(panel: Axes, at: float, row: Mapping[str, Any], look: Mapping[str, Any], ink: Ink, filled: bool) -> None:
    low, high = row["change_low"], row["change_high"]
    if low is not None and high is not None:
        panel.plot([at, at], [low, high], color=look["color"], linewidth=1.4, zorder=3)
    face = look["color"] if filled else ink.paper
    panel.plot([at], [row["change"]], linestyle="", mfc=face, mew=1.3, markersize=6, zorder=4, **look)


def _ruled(panel: Axes, ink: Ink) -> None:
    panel.axhline(0, color=ink.quiet, linewidth=0.8)
    panel.grid(axis="y", linewidth=0.8)
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5))


def matrix_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """The cross-domain matrices of one model from `cross_matrix_of`, a panel a method; a star where Holm's p is small.

    Rows: whose neurons are off. Columns: whose questions are asked.
    """
    with themed(theme) as ink:
        methods = frame["method"].unique(maintain_order=True).to_list()
        domains = frame["neurons_of"].unique(maintain_order=True).to_list()
        asked = [one for one in domains if one in set(frame["domain"])]
        figure, axes = panels(methods, 0.75 + 0.42 * len(domains), [])
        names = lettered_domains(domains)
        most = max([abs(value) for value in frame["change"] if value is not None], default=0) or 1.0
        for panel, method in zip(axes, methods, strict=True):
            cells = frame.filter(pl.col("method") == method).rows_by_key(["neurons_of", "domain"], named=True)
            values = numpy.full((len(domains), len(asked)), numpy.nan)
            for (own, other), (row,) in cells.items():
                place = domains.index(own), asked.index(other)
                values[place] = row["change"]
                star = "*" if row["p_holm"] < SIGNIFICANT else ""
                strong = abs(row["change"]) > 0.6 * most
                colour = "#FFFFFF" if strong else "#1D1F23"
                text = f"{number(row['change'], 2)}{star}"
                panel.text(place[1], place[0], text, ha="center", va="center", fontsize=8, color=colour)
            panel.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
            panel.set_xticks(range(len(asked)), [names[one] for one in asked], fontsize=8)
            panel.set_yticks(range(len(domains)), [*names.values()], fontsize=8)
            panel.tick_params(length=0, labelcolor=ink.text)
            panel.set_ylabel("neurons of")
        axes[-1].set_xlabel("questions of")
        return figure


def dose_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """The dose-response of one model from `doses`: change against strength, a panel a domain, random neurons grey."""
    with themed(theme) as ink:
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = line_looks(frame["method"].unique(maintain_order=True).to_list())
        drawn = Line2D([], [], color=ink.quiet, label=RANDOM)
        figure, axes = _grid([*lettered_domains(domains).values()], [*_legend(looks), drawn])
        for panel, domain in zip(axes, domains, strict=False):
            _ruled(panel, ink)
            for method, look in looks.items():
                here = frame.filter((pl.col("domain") == domain) & (pl.col("method") == method)).sort("strength")
                x = here["strength"].to_list()
                if None not in here["random"].to_list():
                    panel.plot(x, here["random"].to_list(), color=ink.quiet, linewidth=1.2)
                panel.plot(x, here["change"].to_list(), linewidth=1.4, **look)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 + value:g}×"))
        figure.supxlabel("what the neurons’ activations are multiplied by", fontsize=9.5, color=ink.quiet)
        figure.supylabel("change of log-probability, nats", fontsize=9.5, color=ink.quiet)
        return figure


def _legend(looks: dict[str, dict[str, Any]]) -> list[Any]:
    return [Line2D([], [], label=lettered(method, 28), linewidth=1.6, **look) for method, look in looks.items()]


def _grid(titles: Sequence[str], legend: list[Any], columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Panels in two columns; the legend stands in the place that is left, or above them."""
    rows = ceil(len(titles) / columns)
    figure = Figure(figsize=(7.0, 1.9 * rows + 0.3), layout=ConstrainedLayoutEngine(hspace=0.05))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel, title in zip(axes, lettered_titles(titles), strict=False):
        panel.set_title(title)
    spare = axes[len(titles) :]
    for panel in spare:
        panel.set_axis_off()
    if spare and len(legend) <= IN_A_PANEL:
        spare[0].legend(handles=legend, loc="center left")
    else:
        add_legend(figure, legend)
    return figure, axes


IN_A_PANEL = 7
"""Lines of a legend that have place in a panel."""
