"""The figures: frames of `tables` in, matplotlib figures out. No global state; the same frame gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.selection import module_of
from mmneuron_lens.report.tables import domain_name

Theme = Literal["light", "dark"]

DOMAIN_COLOURS = {
    "common": "#0072B2",
    "remote_sensing": "#D55E00",
    "medical": "#009E73",
    "document": "#CC79A7",
    "auto_driving": "#E69F00",
}
"""One colour a domain, in every figure and both themes: Okabe and Ito's, told apart with any colour vision."""

DOMAIN_MARKERS = {"common": "o", "remote_sensing": "s", "medical": "^", "document": "D", "auto_driving": "v"}
OTHER_COLOUR, OTHER_MARKER = "#7F7F7F", "P"


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


def save_png(figure: Figure, path: str | Path) -> None:
    """Writes the figure as PNG and makes the folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(png(figure))


def _style(ink: Ink) -> Any:
    return {
        **matplotlib.rcParamsDefault,
        "font.family": "DejaVu Sans",
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


def panels(titles: list[str], height: float, legend: list[Any]) -> tuple[Figure, list[Axes]]:
    """Panels one under the other, readable on a narrow screen, with one legend above them."""
    if not titles:
        raise InvalidValue("the frame has no rows to draw; give one with at least one module or site.")
    figure = Figure(figsize=(7.0, height * len(titles) + 0.45), layout=ConstrainedLayoutEngine(hspace=0.06))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(titles), 1, squeeze=False)[:, 0].tolist()
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title)
    figure.legend(handles=legend, loc="outside upper left", ncols=5, columnspacing=1.2, handletextpad=0.4)
    return figure, axes


def look(domain: str) -> dict[str, Any]:
    colour, marker = DOMAIN_COLOURS.get(domain, OTHER_COLOUR), DOMAIN_MARKERS.get(domain, OTHER_MARKER)
    return {"color": colour, "marker": marker}


def layer_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """Figure 5 from `layer_distribution`: neurons of each domain over layers, a panel a module.

    Sites of one module are summed layer by layer. A module of a single layer shows one point a domain.
    """
    with themed(theme):
        modules = frame["module"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        legend = [Line2D([], [], label=domain_name(domain), linewidth=1.6, **look(domain)) for domain in domains]
        figure, axes = panels(modules, 2.15, legend)
        for panel, module in zip(axes, modules, strict=True):
            here = frame.filter(pl.col("module") == module).group_by("domain", "layer").agg(pl.col("neurons").sum())
            layers, most = here["layer"].n_unique(), max(here["neurons"].to_list())
            panel.grid(axis="y", linewidth=0.8)
            for number, domain in enumerate(domains):
                line = here.filter(pl.col("domain") == domain).sort("layer")
                x, y = line["layer"].to_list(), line["neurons"].to_list()
                panel.plot([number] if layers == 1 else x, y, linewidth=1.6, clip_on=False, zorder=3, **look(domain))
            panel.set_ylim(bottom=0, top=max(1.0, 1.05 * most))
            panel.set_ylabel("neurons")
            panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if layers == 1:
                panel.set_xticks(range(len(domains)), [domain_name(domain) for domain in domains])
                panel.set_xlim(-0.5, len(domains) - 0.5)
                panel.set_xlabel("the module’s only layer")
            else:
                panel.set_xticks(range(0, layers, max(1, layers // 12)))
                panel.set_xlabel("layer")
        return figure


def silent_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """Figure 9 from `silent`: the share of silent and of activated neurons in each layer, a panel a site."""
    with themed(theme) as ink:
        sites = frame["site"].unique(maintain_order=True).to_list()
        titles = [f"{module_of(site)} ({site})" for site in sites]
        colours = {"silent": ink.text, "activated": ink.grid}
        legend = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
        figure, axes = panels(titles, 1.65, legend)
        for panel, site in zip(axes, sites, strict=True):
            here = frame.filter(pl.col("site") == site)
            layers = here["layer"].to_list()
            share = (here["silent"] / here["neurons"]).to_list()
            panel.bar(layers, share, width=0.8, color=colours["silent"])
            panel.bar(layers, [1 - part for part in share], width=0.8, bottom=share, color=colours["activated"])
            panel.set_ylim(0, 1)
            spare = max(0.6, 3 - len(layers) / 2)
            panel.set_xlim(-spare, len(layers) - 1 + spare)
            panel.set_ylabel("share")
            panel.set_xlabel("layer")
            panel.set_xticks(layers[:: max(1, len(layers) // 12)])
        return figure


def ablation_figure(frame: pl.DataFrame, theme: Theme = "light") -> Figure:
    """The ablations from `ablation`: difference of accuracy to no ablation with its interval, a panel a module.

    The domain's own neurons are filled and coloured, every draw of as many random neurons is hollow and grey.
    """
    with themed(theme) as ink:
        frame = frame.filter(pl.col("condition") != "none")
        modules = frame["module"].unique(maintain_order=True).to_list()
        domains = frame["domain"].unique(maintain_order=True).to_list()
        own = Line2D([], [], marker="o", color=ink.text, linewidth=1.8, label="the domain’s neurons")
        drawn = Line2D(
            [], [], marker="o", color=ink.quiet, markerfacecolor=ink.paper, linewidth=1, label="random neurons"
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
                    panel.plot([one["low"], one["high"]], [row - 0.12] * 2, color=look(domain)["color"], linewidth=2)
                    panel.plot(one["difference"], row - 0.12, markersize=6, linestyle="", **look(domain))
            panel.set_yticks(range(len(domains)), [domain_name(domain) for domain in domains])
            panel.set_ylim(len(domains) - 0.4, -0.5)
            panel.set_xlim(min(low, 0) - margin, max(high, 0) + margin)
            panel.tick_params(axis="y", length=0, labelcolor=ink.text)
        axes[-1].set_xlabel("difference of accuracy to no ablation, percentage points")
        return figure
