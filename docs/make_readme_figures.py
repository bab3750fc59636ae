"""The pictures of README.md, drawn anew from a run made here: `python docs/make_readme_figures.py`.

It needs playwright and a chromium (`--chromium /usr/bin/chromium`), and takes about a minute on two cores.
`--run FOLDER` keeps the run there, and goes on with one that is there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import polars as pl
import torch
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from torch import Tensor

import mmneuron_lens as mm
from interventions import batch_field, reads
from mmneuron_lens.paper.demo import QUICK, QUICK_PLAN, demo
from mmneuron_lens.report.figures import Ink, themed
from mmneuron_lens.report.lettering import lettered_domains
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.store import Store

HERE = Path(__file__).parent
SITE, SHOWN = "llm.mlp.act", (3, 67)
"""Whose card is open."""

IMAGES = 20
"""New ones of each domain, on which its neurons are read."""


@reads(SITE, over="sum", weight=batch_field("weight"))
def strongly_active(act: Tensor, weight: Tensor) -> Tensor:
    """As README.md writes it."""
    return ((act > 0.5) * weight[..., None]).flatten(0, -2).sum(0)


@reads(SITE, over="sum", weight=batch_field("weight"))
def positions(act: Tensor, weight: Tensor) -> Tensor:
    """How many positions there were."""
    return weight.sum()


def made_run(folder: Path, lens: mm.Lens) -> mm.Selection:
    """What `mmneuron demo --quick` makes; its selection of 5 % is returned."""
    demo(Store(folder), models=(QUICK,), plan=QUICK_PLAN)
    return mm.Selection.load(file_of(folder, "selection_wider", lens.name))


def card(page: Page, run: Path, file: Path) -> None:
    """The open card of a neuron: what it answers to, and how often it is active in each domain."""
    page.goto(f"{(run / 'neurons' / 'index.html').resolve().as_uri()}#{SITE}/{SHOWN[0]}/{SHOWN[1]}")
    shown = "[...document.querySelectorAll('dialog[open] img')].filter(one => one.naturalWidth).length > 3"
    page.wait_for_function(shown)
    page.wait_for_load_state("networkidle")
    page.evaluate("document.activeElement.blur()")
    box = page.locator("dialog[open]").bounding_box()
    assert box is not None
    page.screenshot(path=file, clip={"x": box["x"] + 12, "y": box["y"] + 10, "width": box["width"] - 24, "height": 443})


def smaller(file: Path, colours: int = 256) -> None:
    """The picture in a palette, which a screenshot does not show."""
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(colours, kmeans=1, dither=Image.Dither.NONE).save(file, optimize=True)


def shares(lens: mm.Lens, wider: mm.Selection, corpus: mm.Corpus) -> Tensor:
    """How often neurons of each domain are strongly active on pictures of each: float64 [neurons', pictures']."""
    rows: list[list[float]] = [[] for _ in wider.domains]
    by_domain = corpus.some(
        images=IMAGES, questions_per_image=2, skip_images=QUICK_PLAN.identification_images
    ).by_domain()
    for domain in wider.domains:
        some = by_domain[domain]
        asked = lens.encode([one.images[0] for one in some], [one.question for one in some])
        out = lens.run(strongly_active | positions, asked)
        share = out["strongly_active"].double() / out["positions"].double().view(-1, 1)
        for row, owner in zip(rows, wider.domains, strict=True):
            row.append(float(share[wider.neurons(owner)[SITE]].mean()))
    return torch.tensor(rows, dtype=torch.float64)


def own_intervention(found: Tensor, domains: tuple[str, ...], numbers: list[int], ink: Ink, file: Path) -> None:
    """A cell for neurons of each domain on pictures of each."""
    names = list(lettered_domains(domains).values())
    figure = Figure(figsize=(7.2, 3.1), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * found, cmap="Blues", vmin=0, aspect="auto")
    for row, column in ((row, column) for row in range(len(names)) for column in range(len(names))):
        dark = float(found[row, column]) > 0.6 * float(found.max())
        share = f"{100 * float(found[row, column]):.0f} %"
        axes.text(column, row, share, ha="center", va="center", color="white" if dark else "#1a1a1a")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    axes.set_yticks(range(len(names)), [f"{name} ({number})" for name, number in zip(names, numbers, strict=True)])
    axes.set_xlabel("pictures of this domain")
    axes.set_ylabel("neurons of this domain")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, pad=0.01).set_label("tokens with act > 0.5 (%)")
    figure.savefig(file)


def travelled() -> list[tuple[int, int, int]]:
    """Images, bytes sent and bytes received, of the first table of benchmarks/remote.md."""
    lines = (HERE.parent / "benchmarks" / "remote.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| images | image files"))
    table = [line.strip("| ").split(" | ") for line in lines[first + 2 :]]
    rows = table[: next(number for number, cells in enumerate(table) if len(cells) < 9)]
    return [tuple(int(cells[column].replace(",", "")) for column in (0, 2, 5)) for cells in rows]  # pyright: ignore


def remote_bytes(ink: Ink, file: Path) -> None:
    """What goes up and what comes down, by number of images."""
    images, up, down = zip(*travelled(), strict=True)
    figure = Figure(figsize=(7.2, 2.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for values, name, colour in ((up, "sent: image files and code", "#4269d0"), (down, "received: counts", "#c2571a")):
        size = f"{values[-1] / 1e6:.1f} MB" if values[-1] > 1e6 else f"{values[-1] / 1e3:.0f} kB"
        axes.plot(images, [one / 1000 for one in values], marker="o", color=colour)
        axes.text(images[-1], values[-1] / 1700, f"{name}, {size}", ha="right", va="top", color=colour)
    axes.set_yscale("log")
    axes.set_ylim(1, 30000)
    axes.set_yticks([1, 10, 100, 1000, 10000], ["1 kB", "10 kB", "100 kB", "1 MB", "10 MB"])
    axes.minorticks_off()
    axes.set_xticks(images)
    axes.set_xlim(0, 104)
    axes.set_xlabel("images in one job")
    axes.grid(axis="y", linewidth=0.8)
    figure.savefig(file)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--run", type=Path, help="the run's folder; a temporary one if left out")
    given.add_argument("--chromium", default="/usr/bin/chromium")
    asked = given.parse_args()
    torch.set_num_threads(1)
    figures = HERE / "figures"
    lens, corpus = mm.Lens(QUICK), mm.load_corpus("drawn", images=QUICK_PLAN.identification_images + IMAGES)
    with tempfile.TemporaryDirectory() as scratch:
        run = asked.run or Path(scratch) / "run"
        wider = made_run(run, lens)
        with sync_playwright() as browser:
            opened = browser.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
            page = opened.new_page(viewport={"width": 1180, "height": 1000}, device_scale_factor=2)
            card(page, run, figures / "readme-card.png")
            opened.close()
        document = mm.load_run(run).neurons.filter(pl.col("domain") == "document").sort("log_odds", descending=True)
        one = mm.neuron(run, *document.select("site", "layer", "neuron").row(0))
        one.figure().savefig(figures / "readme-neuron.png", dpi=150)
    numbers = [int(wider.neurons(domain)[SITE].sum()) for domain in wider.domains]
    with themed("light") as ink:
        own_intervention(shares(lens, wider, corpus), wider.domains, numbers, ink, figures / "readme-intervention.png")
        remote_bytes(ink, figures / "readme-remote.png")
    smaller(figures / "readme-card.png")
    smaller(figures / "readme-neuron.png")
    for file in sorted(figures.glob("readme-*.png")):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
