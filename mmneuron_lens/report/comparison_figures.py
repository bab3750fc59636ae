"""Figures of a comparison: which method's neurons matter, its curves over sizes, its matrix, its dose-response."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from mmneuron_lens.report.digits import in_digits
from mmneuron_lens.report.figures import Theme, panels, themed
from mmneuron_lens.report.lettering import lettered, lettered_domains, lettered_titles

METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
METHOD_MARKERS = ("o", "s", "^", "D", "v", "P")

SIGNIFICANT = 0.05
"""Holm's p below which a cell of the matrix has a star."""


def method_look(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method, in the order in which they were compared."""
    return {
        method: {
            "color": METHOD_COLOURS[place % len(METHOD_COLOURS)],
            "marker": METHOD_MARKERS[place % len(METHOD_MARKERS)],
        }
        for place, method in enumerate(methods)
    }


def matter_figure(frame: pl.DataFrame, value: str, label: str, theme: Theme = "light") -> Figure:
    """Which method's neurons matter: a panel a model, a row a domain, a point with its interval a method.

    - frame: model, method, domain, and `value` with `_low` and `_high`; filled where the interval is wholly below 0.
    - value, label: what is shown, and how its axis is called.
    """
    with themed(theme) as ink:
        models = frame["model"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = method_look(frame["method"].unique(maintain_order=True).to_list())
        height = 0.5 + 0.14 * len(domains) * (1 + len(looks))
        figure, axes = panels(models, height, _legend(looks))
        for panel, model in zip(axes, models, strict=True):
            panel.axvline(0, color=ink.quiet, linewidth=1)
            panel.grid(axis="x", linewidth=0.8)
            here = frame.filter(pl.col("model") == model)
            for one in here.iter_rows(named=True):
                place = list(looks).index(one["method"])
                row = domains.index(one["domain"]) + 0.7 * ((place + 0.5) / len(looks) - 0.5)
                look, high = looks[one["method"]], one[f"{value}_high"]
                if high is not None:
                    panel.plot([one[f"{value}_low"], high], [row, row], color=look["color"], linewidth=1.6)
                filled = look["color"] if high is not None and high < 0 else ink.paper
                panel.plot(one[value], row, linestyle="", mfc=filled, mew=1.2, **look)
            panel.set_yticks(range(len(domains)), [*lettered_domains(domains).values()])
            panel.set_ylim(len(domains) - 0.45, -0.55)
            panel.tick_params(axis="y", length=0, labelcolor=ink.text)
        axes[-1].set_xlabel(label)
        return figure


def curve_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """The curves of one model from `curves`, of the own questions: change against fraction, a panel a domain.

    A line a method; grey, with its interval as a band, as many random neurons.
    """
    with themed(theme) as ink:
        frame = frame.filter(pl.col("on") == "own").sort("fraction")
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = method_look(frame["method"].unique(maintain_order=True).to_list())
        band = Patch(facecolor=ink.quiet, alpha=0.3, label="as many random neurons")
        figure, axes = _grid([*lettered_domains(domains).values()], [*_legend(looks), band])
        fractions = frame["fraction"].unique().sort().to_list()
        for panel, domain in zip(axes, domains, strict=False):
            panel.axhline(0, color=ink.quiet, linewidth=0.8)
            panel.grid(axis="y", linewidth=0.8)
            for method, look in looks.items():
                here = frame.filter((pl.col("domain") == domain) & (pl.col("method") == method))
                x = here["fraction"].to_list()
                for name, shown in (("random", {"color": ink.quiet}), ("change", look)):
                    drawn = here[name].to_list()
                    if not x or None in drawn:
                        continue
                    low, high = (here[f"{name}_{end}"].to_list() for end in ("low", "high"))
                    if None not in low + high:
                        panel.fill_between(x, low, high, color=shown["color"], alpha=0.18, linewidth=0)
                    panel.plot(x, drawn, linewidth=1.4, **shown)
            panel.set_xscale("log")
            panel.set_xticks(fractions, [f"{100 * one:g}" for one in fractions])
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.tick_params(axis="x", which="minor", length=0)
            panel.tick_params(labelsize=8)
        figure.supxlabel("neurons off, per cent of each module", fontsize=9, color=ink.quiet)
        figure.supylabel("change of log-probability, nats", fontsize=9, color=ink.quiet)
        return figure


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
                text = f"{in_digits(row['change'])}{star}"
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
        looks = method_look(frame["method"].unique(maintain_order=True).to_list())
        drawn = Line2D([], [], color=ink.quiet, label="as many random neurons")
        figure, axes = _grid([*lettered_domains(domains).values()], [*_legend(looks), drawn])
        for panel, domain in zip(axes, domains, strict=False):
            panel.axhline(0, color=ink.quiet, linewidth=0.8)
            panel.grid(axis="y", linewidth=0.8)
            for method, look in looks.items():
                here = frame.filter((pl.col("domain") == domain) & (pl.col("method") == method)).sort("strength")
                x = here["strength"].to_list()
                if None not in here["random"].to_list():
                    panel.plot(x, here["random"].to_list(), color=ink.quiet, linewidth=1.2)
                panel.plot(x, here["change"].to_list(), linewidth=1.4, **look)
            panel.tick_params(labelsize=8)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 + value:g}×"))
        figure.supxlabel("what the neurons’ activations are multiplied by", fontsize=9, color=ink.quiet)
        figure.supylabel("change of log-probability, nats", fontsize=9, color=ink.quiet)
        return figure


def _legend(looks: dict[str, dict[str, Any]]) -> list[Any]:
    return [Line2D([], [], label=lettered(method, 28), linewidth=1.6, **look) for method, look in looks.items()]


def _grid(titles: Sequence[str], legend: list[Any], columns: int = 2) -> tuple[Figure, list[Any]]:
    """Panels in two columns, with one legend above them; one too many is left blank."""
    rows = ceil(len(titles) / columns)
    figure = Figure(figsize=(7.0, 1.75 * rows + 0.9), layout=ConstrainedLayoutEngine(hspace=0.05))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel, title in zip(axes, lettered_titles(titles), strict=False):
        panel.set_title(title, fontsize=9.5)
    for panel in axes[len(titles) :]:
        panel.set_axis_off()
    figure.legend(handles=legend, ncols=4, loc="outside upper left", columnspacing=1.2, handletextpad=0.4)
    return figure, axes
