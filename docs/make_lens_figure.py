"""Draws docs/figures/lenses.png: the logit lens, the Jacobian lens and the tuned lens on the embedded LLaVA-NeXT.

    python docs/make_lens_figure.py

It fits both lenses on drawn questions, judges them by others, and says how long that took.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import mmneuron_lens as mm
from interventions import Intervention, logit_lens
from mmneuron_lens.experiments.fit_jacobian import fit_jacobian_lens
from mmneuron_lens.experiments.fit_tuned import fit_tuned_lens
from mmneuron_lens.report.figures import themed

HERE = Path(__file__).parent
STREAM = ("llm.embedding", "llm.residual")
BATCH, TRAINED, HELD_OUT, SAMPLES, STEPS = 8, 160, 40, 64, 250
COLOURS = {"logit lens": "#4269d0", "Jacobian lens": "#c2571a", "tuned lens": "#2a8a57"}
MARKS = {"logit lens": "o", "Jacobian lens": "s", "tuned lens": "^"}


def distributions(lens: mm.Lens, read: Intervention, batch: mm.Batch, words: int) -> Tensor:
    """Probabilities of every word by layer at the last position: float64 [layer, row, word]."""
    out = lens.run(read.at(list(STREAM), positions=[-1]), batch)
    embedded, layers = (out[read.name, site][0] for site in STREAM)
    tokens, chances = (torch.cat([embedded[name][None], layers[name]])[:, :, 0] for name in ("tokens", "probabilities"))
    return torch.zeros(*tokens.shape[:2], words).scatter_(-1, tokens, chances).double()


def entropy(chances: Tensor) -> Tensor:
    return -(chances * chances.clamp(min=1e-30).log()).sum(-1)


def divergence(chances: Tensor) -> Tensor:
    """KL(final || lens), the final distribution being the last layer's."""
    final = chances[-1:]
    return (final * (final.clamp(min=1e-30).log() - chances.clamp(min=1e-30).log())).sum(-1)


def lines(panel: Axes, by_lens: dict[str, Tensor], label: str, names: list[str]) -> None:
    for name, values in by_lens.items():
        panel.plot(values.mean(1).tolist(), label=name, color=COLOURS[name], marker=MARKS[name], linewidth=1.6)
    panel.set_xticks(range(len(names)), names)
    panel.set_xlabel("layer")
    panel.set_ylabel(label)
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
    panel.grid(axis="y", linewidth=0.8)


def cells(panel: Axes, chances: Tensor, word: Any, names: list[str], highest: float, ink: Any) -> Any:
    """The best word of each lens at each layer of one question, on the colour of its entropy."""
    spread = entropy(chances).T
    image = panel.imshow(spread, cmap="YlGnBu", norm=Normalize(0, highest), aspect="auto")
    for layer in range(len(names)):
        for column in range(chances.shape[1]):
            best, share = int(chances[layer, column].argmax()), float(chances[layer, column].max())
            dark = float(spread[column, layer]) > 0.6 * highest
            panel.text(
                *(layer, column, f"{word(best)}\n{share:.0%}" if share >= 0.005 else f"{word(best)}\n< 1%"),
                **{"ha": "center", "va": "center", "fontsize": 9, "color": "white" if dark else "#1a1a1a"},
            )
    panel.set_yticks(range(len(COLOURS)), list(COLOURS))
    panel.set_xticks(range(len(names)), names)
    panel.set_xlabel("layer")
    panel.tick_params(length=0)
    return image


def main() -> None:
    lens, corpus = mm.Lens("embedded/llava-next"), mm.load_corpus("drawn", images=40)
    order = list(range(len(corpus)))
    random.Random(0).shuffle(order)
    asked = [corpus[number] for number in order[: TRAINED + HELD_OUT]]
    batches = [
        lens.encode([one.images[0] for one in some], [one.question for one in some])
        for some in (asked[start : start + BATCH] for start in range(0, len(asked), BATCH))
    ]
    trained, held_out = batches[: TRAINED // BATCH], batches[TRAINED // BATCH :]
    start = time.monotonic()
    jacobian = fit_jacobian_lens(lens, trained, samples=SAMPLES)
    took = time.monotonic() - start
    print(f"Jacobian lens: {took:.0f} s, {jacobian.positions} positions, error {jacobian.error.tolist()}")
    start = time.monotonic()
    tuned = fit_tuned_lens(lens, trained, held_out=held_out, steps=STEPS)
    print(f"tuned lens: {time.monotonic() - start:.0f} s, held out {tuned.held_out.tolist()}")
    print(f"logit lens: held out {tuned.held_out_logit_lens.tolist()}")

    words = lens.module.config.get_text_config().vocab_size
    reads = [logit_lens.bind(top_k=words), jacobian.bound(lens, top_k=words), tuned.bound(lens, top_k=words)]
    found = {
        name: torch.cat([distributions(lens, read, batch, words) for batch in held_out], dim=1)
        for name, read in zip(COLOURS, reads, strict=True)
    }
    for name, chances in found.items():
        agree = (chances.argmax(-1) == chances[-1:].argmax(-1)).double().mean(1)
        print(f"{name}: KL {divergence(chances).mean(1).tolist()}, entropy {entropy(chances).mean(1).tolist()}")
        print(f"{name}: best word is the model's {agree.tolist()}")
    layers = next(iter(found.values())).shape[0]
    names = ["embedding", *map(str, range(1, layers))]
    draw(lens, found, [asked[TRAINED + number] for number in range(HELD_OUT)], names)


def draw(lens: mm.Lens, found: dict[str, Tensor], asked: list[mm.Sample], names: list[str]) -> None:
    chosen = next(number for number, one in enumerate(asked) if one.kind == "name")
    one = torch.stack([chances[:, chosen] for chances in found.values()], dim=1)
    with themed("light") as ink:
        figure = Figure(figsize=(9.2, 5.6), dpi=150, layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.05))
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        lines(left, {name: entropy(chances) for name, chances in found.items()}, "entropy (nats)", names)
        lines(
            right, {name: divergence(chances) for name, chances in found.items()}, "KL to the last layer (nats)", names
        )
        left.set_title(f"How sure: mean of {len(asked)} held-out questions", loc="left", fontsize=10)
        right.set_title("How far from the model’s own distribution", loc="left", fontsize=10)
        right.legend(frameon=False, fontsize=9)
        table = figure.add_subplot(grid[1, :])
        highest = float(entropy(one).max())
        image = cells(table, one, lambda token: lens.processor.tokenizer.decode([token]).strip(), names, highest, ink)
        table.set_title(f"“{asked[chosen].question}” (answer: {asked[chosen].answers[0]})", loc="left", fontsize=10)
        bar = figure.colorbar(image, ax=table, pad=0.01)
        bar.set_label("entropy (nats)")
        bar.outline.set_visible(False)
        (HERE / "figures").mkdir(exist_ok=True)
        figure.savefig(HERE / "figures" / "lenses.png")


if __name__ == "__main__":
    main()
