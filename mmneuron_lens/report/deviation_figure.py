"""Table 3 as a picture: how far the last hidden state moves without a domain's neurons, and without random ones."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmneuron_lens.report.figures import Theme, look, panels, themed
from mmneuron_lens.report.tables import domain_name


def deviation_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """From rows of module, condition, domain, deviation, low, high: a panel a module, a row a domain."""
    with themed(theme) as ink:
        modules = frame["module"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        own = Line2D([], [], marker="o", linestyle="", color=ink.text, label="the domain’s neurons")
        legend = [own]
        hollow = {"random": "o", "random by layer": "d"}
        legend += [
            Line2D([], [], marker=marker, linestyle="", color=ink.quiet, markerfacecolor=ink.paper, label=name)
            for name, marker in hollow.items()
        ]
        figure, axes = panels(modules, 0.5 + 0.3 * len(domains), legend)
        for panel, module in zip(axes, modules, strict=True):
            panel.grid(axis="x", linewidth=0.8)
            for row, domain in enumerate(domains):
                here = frame.filter((pl.col("module") == module) & (pl.col("domain") == domain)).to_dicts()
                for one in here:
                    mine = one["condition"] == "domain"
                    tint = look(domain)["color"] if mine else ink.quiet
                    if one["low"] is not None:
                        panel.plot([one["low"], one["high"]], [row, row], color=tint, linewidth=2 if mine else 0.8)
                    style = look(domain) if mine else {"color": tint, "marker": hollow[one["condition"]]}
                    panel.plot(one["deviation"], row, linestyle="", mfc=tint if mine else ink.paper, **style)
            panel.set_yticks(range(len(domains)), [domain_name(domain) for domain in domains])
            panel.set_ylim(len(domains) - 0.5, -0.5)
            panel.set_xlim(left=0)
            panel.tick_params(axis="y", length=0, labelcolor=ink.text)
        axes[-1].set_xlabel("deviation of the last hidden state, per cent")
        return figure
