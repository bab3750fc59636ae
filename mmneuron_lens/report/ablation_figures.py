"""Figures of what happens without neurons: accuracy (Table 2 as points) and the last hidden state (Table 3)."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmneuron_lens.report.figures import Theme, panels, themed
from mmneuron_lens.report.lettering import lettered_domains
from mmneuron_lens.report.looks import looks_of

BESIDE = {"domain": -0.22, "random": 0.06, "random by layer": 0.28}
"""Where the points of a condition stand in a domain's row."""


def ablation_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """The ablations from `ablation`: difference of accuracy to no ablation with its interval, a panel a module.

    The domain's own neurons are filled and coloured, every draw of as many random neurons is hollow and grey.
    """
    with themed(theme) as ink:
        frame = frame.filter(pl.col("condition") != "none")
        modules = frame["module"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = looks_of(domains)
        own = Line2D([], [], marker="o", color=ink.text, linewidth=1.8, label="the domain’s neurons")
        drawn = Line2D(
            [],
            [],
            marker="o",
            color=ink.quiet,
            markerfacecolor=ink.paper,
            linewidth=1,
            label="as many random neurons, a draw each",
        )
        figure, axes = panels(modules, 0.5 + 0.42 * len(domains), [own, drawn])
        ends = frame.select(pl.min_horizontal("low", "difference").min(), pl.max_horizontal("high", "difference").max())
        low, high = (float(end) for end in ends.row(0))
        margin = 0.05 * (high - low) + 0.1
        for panel, module in zip(axes, modules, strict=True):
            panel.axvline(0, color=ink.quiet, linewidth=1)
            panel.grid(axis="x", linewidth=0.8)
            for row, domain in enumerate(domains):
                here = frame.filter((pl.col("module") == module) & (pl.col("domain") == domain))
                draws = here.filter(pl.col("condition") != "domain").to_dicts()
                for number, draw in enumerate(draws):
                    place = row + 0.08 + 0.3 * (number + 1) / len(draws)
                    panel.plot([draw["low"], draw["high"]], [place, place], color=ink.quiet, linewidth=0.7, alpha=0.7)
                    panel.plot(draw["difference"], place, "o", ms=3, color=ink.quiet, mfc=ink.paper, mew=0.8)
                for one in here.filter(pl.col("condition") == "domain").to_dicts():
                    panel.plot([one["low"], one["high"]], [row - 0.12] * 2, color=looks[domain]["color"], linewidth=2)
                    panel.plot(one["difference"], row - 0.12, markersize=6, linestyle="", **looks[domain])
            panel.set_yticks(range(len(domains)), [*lettered_domains(domains).values()])
            panel.set_ylim(len(domains) - 0.4, -0.5)
            panel.set_xlim(min(low, 0) - margin, max(high, 0) + margin)
            panel.tick_params(axis="y", length=0, labelcolor=ink.text)
        axes[-1].set_xlabel("difference of accuracy to no ablation, percentage points")
        return figure


def deviation_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """From rows of module, condition, domain, deviation, low, high: a panel a module, a row a domain."""
    with themed(theme) as ink:
        modules = frame["module"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = looks_of(domains)
        own = Line2D([], [], marker="o", linestyle="", color=ink.text, label="the domain’s neurons")
        legend = [own]
        hollow = {"random": "o", "random by layer": "d"}
        told = {"random": "as many random neurons", "random by layer": "as many in each layer"}
        legend += [
            Line2D([], [], marker=marker, linestyle="", color=ink.quiet, markerfacecolor=ink.paper, label=told[name])
            for name, marker in hollow.items()
        ]
        figure, axes = panels(modules, 0.5 + 0.36 * len(domains), legend)
        for panel, module in zip(axes, modules, strict=True):
            panel.grid(axis="x", linewidth=0.8)
            for row, domain in enumerate(domains):
                here = frame.filter((pl.col("module") == module) & (pl.col("domain") == domain)).to_dicts()
                for one in here:
                    mine = one["condition"] == "domain"
                    tint = looks[domain]["color"] if mine else ink.quiet
                    at = row + BESIDE[one["condition"]]
                    if one["low"] is not None:
                        panel.plot([one["low"], one["high"]], [at, at], color=tint, linewidth=2 if mine else 1)
                    style = looks[domain] if mine else {"color": tint, "marker": hollow[one["condition"]]}
                    panel.plot(one["deviation"], at, linestyle="", mfc=tint if mine else ink.paper, **style)
            panel.set_yticks(range(len(domains)), [*lettered_domains(domains).values()])
            panel.set_ylim(len(domains) - 0.5, -0.5)
            panel.set_xlim(left=0)
            panel.tick_params(axis="y", length=0, labelcolor=ink.text)
        axes[-1].set_xlabel("deviation of the last hidden state, per cent")
        return figure
