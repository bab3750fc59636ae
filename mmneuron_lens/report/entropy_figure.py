"""Figure 7: average entropy of the next-token distribution over layers, by domain and kind of token."""

from __future__ import annotations

from typing import Literal

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmneuron_lens.report.figures import Theme, look, panels, themed
from mmneuron_lens.report.tables import domain_name

DASHES: dict[str, Literal["--", "-"]] = {"image": "--", "text": "-"}
"""As in the paper: image tokens dashed, text tokens solid."""


def entropy_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """From rows of model, domain, kind, layer, entropy: a panel a model, a line a domain and kind of token."""
    with themed(theme) as ink:
        models = frame["model"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        legend = [Line2D([], [], label=domain_name(domain), linewidth=1.6, **look(domain)) for domain in domains]
        legend += [
            Line2D([], [], label=f"{kind} tokens", color=ink.quiet, linestyle=dash) for kind, dash in DASHES.items()
        ]
        figure, axes = panels(models, 2.9, legend)
        for panel, model in zip(axes, models, strict=True):
            here = frame.filter(pl.col("model") == model)
            panel.grid(axis="y", linewidth=0.8)
            for domain in domains:
                for kind, dash in DASHES.items():
                    line = here.filter((pl.col("domain") == domain) & (pl.col("kind") == kind)).sort("layer")
                    style = {"linestyle": dash, "linewidth": 1.6, "clip_on": False, "zorder": 3, **look(domain)}
                    panel.plot(line["layer"].to_list(), line["entropy"].to_list(), **style)
            panel.set_ylim(bottom=0)
            layers = here["layer"].unique().sort().to_list()
            panel.set_xticks(layers[:: max(1, len(layers) // 12)])
            panel.set_xlabel("layer (0 is the embedding)")
            panel.set_ylabel("entropy, nats")
        return figure
