"""The site maps of docs/concepts.md, drawn anew from architectures: `python docs/make_site_map.py`.

Another model's: `python docs/make_site_map.py FOLDER_OR_ID map.svg`, which reads its configuration alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from transformers import AutoConfig

from mmneuron_lens.architectures import Architecture, architecture_of

ROOT = Path(__file__).parent.parent
CONFIGURATIONS = ROOT / "tests" / "published_configs.json"
MAPS = {
    "site-map-llava-next": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "site-map-instructblip": "Salesforce/instructblip-vicuna-7b",
}
PARTS = {"vision": "Vision tower", "qformer": "Q-Former", "projector": "Projector", "llm": "Language model"}
NEURONS, PLAIN, READ_ONLY, INK, QUIET, FRAME = "#c8dcf5", "#ffffff", "#eeeeee", "#1d2733", "#556270", "#f6f7f9"
ROW, GAP, WIDTH = 0.46, 0.14, 4.6


@dataclass(frozen=True)
class Box:
    """A site as it is drawn: its name within its part, its axes with their lengths, and what it may do."""

    site: str
    axes: str
    neurons: bool
    fixed: bool


@dataclass(frozen=True)
class Block:
    """Consecutive sites of one part that have the same number of layers: rows of boxes, in forward order."""

    title: str
    rows: tuple[tuple[Box, ...], ...]
    repeated: bool
    aside: bool
    note: str

    @property
    def height(self) -> float:
        return len(self.rows) * (ROW + GAP) + GAP + (0.36 if self.title else 0) + (0.3 if self.note else 0)


def blocks(architecture: Architecture) -> list[Block]:
    """The sites of an architecture in forward order, as they are drawn."""
    found: list[tuple[tuple[str, int | None], list[str]]] = []
    for site, place in architecture.places.items():
        key = (site.split(".")[0], place.layers)
        if not found or found[-1][0] != key:
            found.append((key, []))
        found[-1][1].append(site)
    seen: set[str] = set()
    made = []
    for (part, layers), sites in found:
        title = "" if part in seen and layers is None else PARTS[part]
        title += f", {layers} layers" if layers else ""
        seen.add(part)
        aside = all(architecture.place(site).dead is True for site in sites)
        rows, note = tuple(_rows(architecture, sites)), _note(architecture, sites)
        made.append(Block(title, rows, bool(layers), aside, note))
    return made


def _rows(architecture: Architecture, sites: Iterable[str]) -> Iterable[tuple[Box, ...]]:
    row: list[Box] = []
    for site in sites:
        if site.endswith((".q", ".k", ".v")):
            row.append(_box(architecture, site))
            if not site.endswith(".v"):
                continue
            yield tuple(row)
            row = []
        else:
            yield (_box(architecture, site),)


def _box(architecture: Architecture, site: str) -> Box:
    place = architecture.place(site)
    axes = (
        f"{axis} {place.sizes[axis]:,}" if axis in place.sizes else axis for axis in architecture.axes(site).split()
    )
    return Box(site, " · ".join(axes), site.endswith(".act"), bool(place.fixed))


def _note(architecture: Architecture, sites: list[str]) -> str:
    dead = {site: architecture.place(site).dead for site in sites}
    cut = [site for site, layers in dead.items() if layers is not True and layers]
    if not cut:
        return ""
    layers = sorted({layer for site in cut for layer in dead[site]})
    of = "" if len(cut) == len(sites) else f" of {', '.join(cut)}"
    return f"layer {', '.join(map(str, layers))}{of} cannot reach the logits"


def draw(architecture: Architecture, title: str, file: Path) -> None:
    """Two columns, what comes before the language model and the language model, as SVG with text."""
    parts = blocks(architecture)
    before = [one for one in parts if not one.rows[0][0].site.startswith("llm.")]
    llm = [one for one in parts if one not in before]
    height = max(sum(one.height + 0.34 for one in column) for column in (before, llm)) + 1.5
    style = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "mmneuron-lens"}
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=(10, height))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 10), ylim=(-height, 0))
        axes.axis("off")
        axes.text(0.2, -0.4, title, size=15, weight="bold", color=INK)
        axes.text(0.2, -0.72, _totals(architecture), size=11, color=QUIET)
        ends = [
            _column(axes, column, left, word) for column, left, word in ((before, 0.2, "image"), (llm, 5.2, "words"))
        ]
        _across(axes, ends[0], -1.2 - 0.24 - GAP - 0.36 - ROW / 2)
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)


def _totals(architecture: Architecture) -> str:
    sites = [site for site in architecture.sites if site.endswith(".act")]
    total = sum(architecture.neurons(site) for site in sites)
    return f"{total:,} neurons in the blue sites; grey sites are read only"


def _column(axes: Axes, column: list[Block], left: float, word: str) -> float:
    top, line = -1.2, left + 0.6
    axes.text(line, top + 0.16, word, ha="center", size=11, style="italic", color=QUIET)
    start = top + 0.1
    for block in column:
        top -= 0.24
        if block.aside:
            middle = top - GAP - ROW / 2
            axes.annotate("", (line + 0.4 + GAP, middle), (line, middle), arrowprops=_arrow())
            _block(axes, block, line + 0.4, top, left + WIDTH - line - 0.4)
            top -= block.height + 0.1
            continue
        end = top if block.repeated else top - GAP - (0.36 if block.title else 0)
        axes.annotate("", (line, end), (line, start), arrowprops=_arrow())
        _block(axes, block, left, top, WIDTH)
        top -= block.height + 0.1
        start = top + 0.1 + (0 if block.repeated else GAP)
    return start


def _arrow() -> dict[str, Any]:
    return {"arrowstyle": "-|>", "color": QUIET, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}


def _block(axes: Axes, block: Block, left: float, top: float, width: float) -> None:
    if block.title and not block.repeated:
        axes.text(left + 0.9, top - GAP - 0.2, block.title, size=12, weight="bold", color=INK)
    if block.repeated:
        for behind in (0.12, 0.06, 0.0):
            axes.add_patch(_patch(left + behind, top - block.height - behind / 2, width - 0.14, block.height, FRAME))
    below = top - GAP
    if block.title:
        if block.repeated:
            axes.text(left + 0.14, below - 0.2, block.title, size=12, weight="bold", color=INK)
        below -= 0.36
    for row in block.rows:
        wide = (width - 0.14 - 2 * GAP - (len(row) - 1) * 0.08) / len(row)
        for number, box in enumerate(row):
            _draw_box(axes, box, left + GAP + number * (wide + 0.08), below - ROW, wide, len(row) > 1)
        below -= ROW + GAP
    if block.note:
        axes.text(left + 0.14, below - 0.1, block.note, size=10.5, color="#8a3b12")


def _draw_box(axes: Axes, box: Box, left: float, bottom: float, wide: float, short: bool) -> None:
    color = NEURONS if box.neurons else READ_ONLY if box.fixed else PLAIN
    axes.add_patch(_patch(left, bottom, wide, ROW, color, box.site))
    if short:
        name = box.site.split(".", 1)[1] if box.site.endswith(".q") else f".{box.site.rsplit('.', 1)[1]}"
        axes.text(left + wide / 2, bottom + 0.26, name, ha="center", size=10.5, color=INK)
        axes.text(left + wide / 2, bottom + 0.09, box.axes.split(" · ", 2)[2], ha="center", size=7.5, color=QUIET)
        return
    axes.text(left + 0.1, bottom + ROW / 2, box.site, va="center", size=10.5, color=INK)
    axes.text(left + wide - 0.1, bottom + ROW / 2, box.axes, va="center", ha="right", size=8.5, color=QUIET)


def _patch(left: float, bottom: float, wide: float, high: float, color: str, name: str | None = None) -> FancyBboxPatch:
    shape = f"round,pad=0,rounding_size={0.06 if name else 0.12}"
    return FancyBboxPatch(
        (left, bottom), wide, high, boxstyle=shape, facecolor=color, edgecolor="#9aa5b1", linewidth=0.8, gid=name
    )


def _across(axes: Axes, end: float, start: float) -> None:
    """From the projector to the words' embedding."""
    middle = 5.0
    color = {"color": QUIET, "linewidth": 1.2}
    axes.plot([0.8, 0.8, middle, middle], [end, end - 0.3, end - 0.3, start], **color)
    axes.annotate("", (5.2 + GAP, start), (middle, start), arrowprops=_arrow())


def published(name: str) -> Architecture:
    """Of a published checkpoint, from its configuration."""
    given = json.loads(CONFIGURATIONS.read_text(encoding="utf-8"))[name]["config"]
    return architecture_of(AutoConfig.for_model(**given))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asked = sys.argv[1]
        draw(architecture_of(AutoConfig.from_pretrained(asked)), Path(asked).name, Path(sys.argv[2]))
    else:
        for file, name in MAPS.items():
            draw(published(name), name, ROOT / "docs" / "figures" / f"{file}.svg")
