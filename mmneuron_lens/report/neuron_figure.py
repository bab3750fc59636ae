"""The figure of one neuron: pictures with its maps, and how often it is active in each domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from PIL import Image

from mmneuron_lens.report.figures import Ink, Theme, themed
from mmneuron_lens.report.lettering import lettered, lettered_domains
from mmneuron_lens.report.looks import colours_of
from mmneuron_lens.report.neuron_card import map_of, map_size
from mmneuron_lens.report.neuron_document import neuron_document
from mmneuron_lens.report.neuron_maps import coloured, enlarged, outline
from mmneuron_lens.report.neuron_sources import NeuronSources

PICTURES = 4
"""Of the figure, at most."""

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
"""Of kinds of token, so that they are told apart without colour."""


def neuron_figure(sources: NeuronSources, place: int, folder: Path, theme: Theme = "light") -> Figure:
    """Pictures with the neuron's maps on them, its probabilities by domain, and those by kind of token.

    - folder: where the thumbnails lie, as `sources.pictures` calls them.
    """
    card = neuron_document(sources, place)
    shown = [one for one in card["examples"] if one["ratio"] is not None][:PICTURES]
    kinds = [group for group in card["bars"] if group[0]]
    with themed(theme) as ink:
        figure = Figure(figsize=(7.0, 4.6 if shown else 2.7), layout=ConstrainedLayoutEngine(hspace=0.07))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2 if shown else 1, 1, height_ratios=[1, 1.25] if shown else None)
        if shown:
            above = grid[0].subgridspec(1, PICTURES)
            for number, one in enumerate(shown):
                _picture(figure.add_subplot(above[number]), one, folder, ink)
        below = grid[-1].subgridspec(1, 2 if kinds else 1)
        names = [*lettered_domains(sources.domains).values()]
        panels = [figure.add_subplot(below[number]) for number in range(2 if kinds else 1)]
        _bars(panels[0], card["bars"][:1], names, colours_of(sources.domains), ink)
        panels[0].set_title("probability of being active")
        if kinds:
            _bars(panels[1], kinds, names, colours_of(sources.domains), ink)
            panels[1].set_title("by kind of token")
            panels[1].set_yticklabels([])
        figure.suptitle(_title(card), x=0.01, ha="left", fontsize=11, fontweight="bold", color=ink.text)
    return figure


def _title(card: dict[str, Any]) -> str:
    odds = f", log-odds {card['odds']['text']}" if card["odds"] else ""
    return lettered(f"{card['title']}{' †' if card['unreachable'] else ''}{odds}")


def _picture(panel: Axes, one: dict[str, Any], folder: Path, ink: Ink) -> None:
    height, width = map_size(one["ratio"])
    place: Any = {"extent": (0, 1, 1, 0), "aspect": height / width, "interpolation": "bilinear"}
    file = folder / one["picture"]
    there = bool(one["picture"]) and file.is_file()
    panel.imshow(_pixels(file) if there else np.full((2, 2, 3), 131, np.uint8), **place)
    if one["map"]:
        values = map_of(one)
        panel.imshow(coloured(enlarged(values, height, width)).numpy(), **place)
        for line in outline(values, one["level"]):
            x, y = zip(*line, strict=True)
            panel.plot(x, y, color="#141418", linewidth=2.2)
            panel.plot(x, y, color="white", linewidth=1.1)
    if one["box"] is not None:
        left, top, right, bottom = one["box"]
        panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="#ffd84d", linewidth=1.4))
    panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    panel.set_title(one["activation"], fontsize=9, fontweight="normal", color=ink.quiet)


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _bars(panel: Axes, groups: Sequence[Any], names: list[str], colours: list[str], ink: Ink) -> None:
    """A bar a domain and kind, with its interval where there is one."""
    high = 0.8 / max(1, len(groups))
    for number, (kind, rows) in enumerate(groups):
        for place, value, low, top, _ in rows:
            at = place + (number - (len(groups) - 1) / 2) * high
            spread = None if value is None or low is None or top is None else [[value - low], [top - value]]
            panel.barh(
                at, value or 0, height=0.9 * high, color=colours[place], xerr=spread, ecolor=ink.text,
                hatch=HATCHES[number % len(HATCHES)], edgecolor=ink.paper, linewidth=0,
            )  # fmt: skip
        if kind:
            style: Any = {"facecolor": ink.quiet, "hatch": HATCHES[number % len(HATCHES)], "edgecolor": ink.paper}
            panel.barh([0], [0], label=kind, linewidth=0, **style)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_xlim(left=0)
    panel.grid(axis="x", linewidth=0.8)
    if len(groups) > 1:
        # Beside the title: there are bars everywhere below it.
        style: Any = {"ncols": len(groups), "borderaxespad": 0.2, "columnspacing": 1, "handlelength": 1.4}
        panel.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5, **style)
