"""Figure 2: image embeddings on their first two principal components."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmneuron_lens.artifacts.digits import percent
from mmneuron_lens.report.figures import Theme, panels, themed
from mmneuron_lens.report.lettering import lettered_domains
from mmneuron_lens.report.looks import looks_of


def embedding_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """From rows of model, domain, first, second, first_share, second_share: a panel a model, a point an image."""
    with themed(theme) as ink:
        models = frame["model"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = looks_of(domains)
        names = lettered_domains(domains)
        legend = [Line2D([], [], label=name, linestyle="", **looks[domain]) for domain, name in names.items()]
        figure, axes = panels(models, 4.2, legend)
        for panel, model in zip(axes, models, strict=True):
            here = frame.filter(pl.col("model") == model)
            panel.grid(linewidth=0.8)
            for domain in domains:
                some = here.filter(pl.col("domain") == domain)
                style = {"linestyle": "", "markersize": 4, "markeredgewidth": 0.4, "markeredgecolor": ink.paper}
                panel.plot(some["first"].to_list(), some["second"].to_list(), alpha=0.8, **style, **looks[domain])
            for axis, name in ((panel.xaxis, "first"), (panel.yaxis, "second")):
                share = here[f"{name}_share"][0]
                axis.set_label_text(f"{name} component, {percent(share, 0)} of the variance")
        return figure
