"""Figures over layers that are not in the paper: knock-out curves, and linear probes of the domain."""

from __future__ import annotations

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmneuron_lens.report.figures import Theme, panels, themed
from mmneuron_lens.report.lettering import lettered_domains
from mmneuron_lens.report.looks import line_looks

MARKERS = 8
"""On a line, and fewer than twice as many."""

PLACE_NAMES = {"last": "last position", "image": "mean over image positions"}


def flow_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """From rows of domain, route, layer, change, low, high of one model: a panel a domain, a line a route with its
    interval.
    """
    with themed(theme) as ink:
        domains = frame["domain"].unique(maintain_order=True).to_list()
        routes = frame["route"].unique(maintain_order=True).to_list()
        looks = line_looks(routes, dashed=True)
        legend = [Line2D([], [], label=route, linewidth=1.6, **looks[route]) for route in routes]
        names = [*lettered_domains(domains).values()]
        figure, axes = panels(names, 2.1, legend, columns=2 if len(domains) > 1 else 1)
        for number, (panel, domain) in enumerate(zip(axes, domains, strict=True)):
            here = frame.filter(pl.col("domain") == domain)
            panel.grid(axis="y", linewidth=0.8)
            panel.axhline(0, color=ink.quiet, linewidth=0.8)
            for route in routes:
                _line(panel, here.filter(pl.col("route") == route), "change", looks[route])
            _layers(panel, here, "", most=6 if len(domains) > 1 else 12)
            panel.tick_params(labelbottom=number >= len(domains) - 2)
        figure.supxlabel("layer (middle of the cut, from 0)", fontsize=9.5, color=ink.quiet)
        figure.supylabel("change of the answer’s probability, %", fontsize=9.5, color=ink.quiet)
        return figure


def probe_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """From rows of model, place, layer, accuracy, low, high, shuffled, chance: a panel a model, a line a place with its
    interval, and thin the same on shuffled labels.
    """
    with themed(theme) as ink:
        models = frame["model"].unique(maintain_order=True).to_list()
        places = frame["place"].unique(maintain_order=True).to_list()
        looks = line_looks(places, dashed=True)
        legend = [
            Line2D([], [], label=PLACE_NAMES.get(place, place), linewidth=1.6, **looks[place]) for place in places
        ]
        thin = {"linewidth": 1.0, "linestyle": ":"}
        legend += [Line2D([], [], label="shuffled labels", color=ink.quiet, **thin)]
        figure, axes = panels(models, 2.6, legend)
        for panel, model in zip(axes, models, strict=True):
            here = frame.filter(pl.col("model") == model)
            panel.grid(axis="y", linewidth=0.8)
            for place in places:
                line = here.filter(pl.col("place") == place).sort("layer")
                _line(panel, line, "accuracy", looks[place])
                x, y = line["layer"].to_list(), line["shuffled"].to_list()
                panel.plot(x, y, color=looks[place]["color"], **thin)
            panel.set_ylim(0, 103)
            _layers(panel, here, "layer (0 is the embedding)")
            panel.set_ylabel("questions told rightly, %")
        return figure


def _line(panel: Axes, rows: pl.DataFrame, value: str, look: dict[str, Any]) -> None:
    """A line with its interval, where there is one."""
    line = rows.sort("layer")
    x, y = line["layer"].to_list(), line[value].to_list()
    panel.plot(x, y, linewidth=1.6, zorder=3, clip_on=False, markevery=max(1, len(x) // MARKERS), **look)
    low, high = (line[name].fill_null(line[value]).to_list() for name in ("low", "high"))
    panel.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0, zorder=2)


def _layers(panel: Axes, rows: pl.DataFrame, name: str, most: int = 12) -> None:
    layers = rows["layer"].unique().sort().to_list()
    panel.set_xticks(layers[:: max(1, -(-len(layers) // most))])
    panel.set_xlabel(name)
