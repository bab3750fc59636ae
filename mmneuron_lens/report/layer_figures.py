"""Figures over layers: domain-specific neurons (Figure 5), silent neurons (Figure 9), entropy (Figure 7)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmneuron_lens.artifacts.selection import module_of
from mmneuron_lens.report.figures import Theme, panels, themed
from mmneuron_lens.report.lettering import lettered_domains
from mmneuron_lens.report.looks import looks_of
from mmneuron_lens.report.unreachable import hatch_handle, hatched

DASHES: dict[str, Literal["--", "-"]] = {"image": "--", "text": "-"}
"""As in the paper: image tokens dashed, text tokens solid."""

SIDE_BY_SIDE = 64
"""Characters of names that stand beside each other below an axis."""


def layer_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """Figure 5 from `layer_distribution`: neurons of each domain over layers, a panel a module.

    Sites of one module are summed layer by layer. A module of a single layer shows one point a domain. A layer that
    cannot reach the logits, at one of the module's sites or more, is hatched.
    """
    with themed(theme) as ink:
        modules = frame["module"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = looks_of(domains)
        names = lettered_domains(domains)
        legend = [Line2D([], [], label=name, linewidth=1.6, **looks[domain]) for domain, name in names.items()]
        unreachable = frame.filter(pl.col("reaches_logits").eq(False))
        legend += [hatch_handle(ink)] if len(unreachable) else []
        figure, axes = panels(modules, 2.15, legend)
        for panel, module in zip(axes, modules, strict=True):
            dead = unreachable.filter(pl.col("module") == module)["layer"].unique().sort().to_list()
            here = frame.filter(pl.col("module") == module).group_by("domain", "layer").agg(pl.col("neurons").sum())
            layers, most = here["layer"].n_unique(), max(here["neurons"].to_list())
            hatched(panel, dead, ink, over=len(domains) if layers == 1 else 1)
            panel.grid(axis="y", linewidth=0.8)
            for number, domain in enumerate(domains):
                line = here.filter(pl.col("domain") == domain).sort("layer")
                x, y = line["layer"].to_list(), line["neurons"].to_list()
                panel.plot([number] if layers == 1 else x, y, linewidth=1.6, clip_on=False, zorder=3, **looks[domain])
            panel.set_ylim(bottom=0, top=max(1.0, 1.05 * most))
            panel.set_ylabel("neurons")
            panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if layers == 1:
                panel.set_xticks(range(len(domains)), names.values(), **_turned(names.values()))
                panel.set_xlim(-0.5, len(domains) - 0.5)
                panel.set_xlabel("the module’s only layer")
            else:
                panel.set_xticks(range(0, layers, max(1, layers // 12)))
                panel.set_xlabel("layer")
        return figure


def silent_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """Figure 9 from `silent`: the share of silent and of activated neurons in each layer, a panel a site.

    A layer that cannot reach the logits is hatched.
    """
    with themed(theme) as ink:
        sites = frame["site"].unique(maintain_order=True).to_list()
        titles = [f"{module_of(site)} ({site})" for site in sites]
        colours = {"silent": ink.text, "activated": ink.grid}
        legend = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
        unreachable = frame.filter(pl.col("reaches_logits").eq(False))
        legend += [hatch_handle(ink)] if len(unreachable) else []
        figure, axes = panels(titles, 1.65, legend)
        for panel, site in zip(axes, sites, strict=True):
            here = frame.filter(pl.col("site") == site)
            layers = here["layer"].to_list()
            share = (here["silent"] / here["neurons"]).to_list()
            panel.bar(layers, share, width=0.8, color=colours["silent"])
            panel.bar(layers, [1 - part for part in share], width=0.8, bottom=share, color=colours["activated"])
            hatched(panel, unreachable.filter(pl.col("site") == site)["layer"].to_list(), ink)
            panel.set_ylim(0, 1)
            spare = max(0.6, 3 - len(layers) / 2)
            panel.set_xlim(-spare, len(layers) - 1 + spare)
            panel.set_ylabel("share")
            panel.set_xlabel("layer")
            panel.set_xticks(layers[:: max(1, len(layers) // 12)])
        return figure


def entropy_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """From rows of model, domain, kind, layer, entropy: a panel a model, a line a domain and kind of token."""
    with themed(theme) as ink:
        models = frame["model"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        looks = looks_of(domains)
        names = lettered_domains(domains)
        legend = [Line2D([], [], label=name, linewidth=1.6, **looks[domain]) for domain, name in names.items()]
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
                    style = {"linestyle": dash, "linewidth": 1.6, "clip_on": False, "zorder": 3, **looks[domain]}
                    panel.plot(line["layer"].to_list(), line["entropy"].to_list(), **style)
            panel.set_ylim(bottom=0)
            layers = here["layer"].unique().sort().to_list()
            panel.set_xticks(layers[:: max(1, len(layers) // 12)])
            panel.set_xlabel("layer (0 is the embedding)")
            panel.set_ylabel("entropy, nats")
        return figure


def _turned(names: Collection[str]) -> dict[str, Any]:
    """How names stand below an axis: turned where they would run into each other."""
    return {"rotation": 20, "ha": "right"} if sum(map(len, names)) > SIDE_BY_SIDE else {}
