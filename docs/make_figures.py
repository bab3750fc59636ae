"""The pictures of docs/interventions.md, drawn anew: `python docs/make_figures.py`. Seeded, on an embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy
import torch
from matplotlib import pyplot
from torch import Tensor

import mmneuron_lens as mm
from interventions import (
    Graph,
    add_vector,
    keep,
    mean_ablate_neurons,
    mean_activation,
    patch_activations,
    per_layer,
    resample_ablate_neurons,
)
from interventions.attention import layers_around
from mmneuron_lens.experiments.knock_out import Part, knocked_out
from mmneuron_lens.experiments.resampling import bank_of
from mmneuron_lens.experiments.token_directions import token_id, write_in
from mmneuron_lens.experiments.vocabulary import neuron_vocabulary

FOLDER = Path(__file__).parent / "figures"
QUESTION = "Is a water area present?"
BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
STYLE = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 160,
    "figure.facecolor": "white",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "mmneuron-lens",
}


class Study:
    """The model and the questions that all pictures are about."""

    def __init__(self, images: int = 30) -> None:
        self.lens = mm.Lens("embedded/llava-next")
        corpus = mm.load_corpus("drawn", images=images)
        asked = [one for one in corpus if one.question == QUESTION]
        wet, dry = ([one for one in asked if one.answers == (answer,)] for answer in ("yes", "no"))
        self.number = min(len(wet), len(dry), 10)
        self.wet, self.dry = self.encoded(wet[: self.number]), self.encoded(dry[: self.number])
        self.yes, self.no = (token_id(self.lens, token) for token in (" yes", " no"))

    def encoded(self, samples: Sequence[mm.Sample]) -> mm.Batch:
        return self.lens.encode([one.images for one in samples], [one.question for one in samples])

    def log_probabilities(self, graph: Graph, batch: mm.Batch, source: mm.Batch | None = None) -> Tensor:
        """Of the next token, [row, token]."""
        return self.lens.run(graph, batch, sources=source, logits=True).logits[0][:, -1].log_softmax(-1)


def steering(study: Study) -> None:
    """A dose-response: the difference of two means, added at each strength in each layer."""
    scales = numpy.linspace(0, 3, 13)
    states = [study.lens.run(keep, one)["keep", "llm.residual"][0][:, :, -1].mean(1) for one in (study.dry, study.wet)]
    directions = states[0] - states[1]
    _, axes = pyplot.subplots()
    for layer, colour in enumerate((GREY, GREEN, BLUE, ORANGE)):
        shown: list[float] = []
        for scale in scales:
            graph = Graph() | add_vector.bind(vector=directions[layer], scale=float(scale)).at(layers=layer)
            shown.append(float(study.log_probabilities(graph, study.wet)[:, study.no].exp().mean()))
        axes.plot(scales, shown, color=colour, marker="o", markersize=4, label=f"layer {layer}")
    axes.set(xlabel="how many times the direction is added", ylabel='probability of "no"', ylim=(-0.03, 1.03))
    axes.set_title(f'"{QUESTION}" of pictures with water')
    axes.legend()
    save("steering")


def knock_out(study: Study) -> None:
    """Attention that is cut in a window of layers: what the answer's probability loses."""
    window, width = 2, 0.21
    paths: tuple[tuple[Part, Part, str], ...] = (
        ("question", "image", BLUE),
        ("last", "image", ORANGE),
        ("text", "image", GREY),
        ("last", "question", GREEN),
    )
    plain = study.log_probabilities(Graph(), study.dry)[:, study.no].exp()
    windows = [layers_around(layer, window, 4) for layer in range(4)]
    _, axes = pyplot.subplots()
    axes.axhline(0, color=GREY, linewidth=1)
    for number, (queries, keys, colour) in enumerate(paths):
        shown: list[float] = []
        for layer in range(4):
            cut = Graph() | knocked_out(study.lens, study.dry, queries=queries, keys=keys, around=layer, window=window)
            left = study.log_probabilities(cut, study.dry)[:, study.no].exp()
            shown.append(float((100 * (left - plain) / plain).mean()))
        places = [layer + (number - 1.5) * width for layer in range(4)]
        axes.bar(places, shown, width=width, color=colour, label=f"{keys} to {queries}")
        for place, value in zip(places, shown, strict=True):
            text = f"{value:.0f}".replace("-0", "0")
            axes.text(place, min(value, 0) - 2, text, ha="center", va="top", fontsize=9, color=colour)
    names = [str(one[0]) if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in windows]
    axes.set_xticks(range(4), names)
    axes.set(xlabel="layers in which attention is cut", ylim=(-95, 3), yticks=range(-80, 1, 20))
    axes.set_ylabel('change of P("no") in %')
    axes.set_title(f'"{QUESTION}" of pictures without water')
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=4, fontsize=10, columnspacing=1, handlelength=1)
    save("knock-out")


def patching(study: Study) -> None:
    """A heat map: states of a picture without water put into one with water, place by place."""
    kinds = study.wet.kind[0]
    images = [column for column, kind in enumerate(kinds) if kind == "image"]
    words = [column for column, kind in enumerate(kinds) if kind == "text" and column > images[-1]]
    groups = {"image": images, **{str(column): [column] for column in words}}
    labels = ["image", *(study.wet.tokens[0][column].strip(" ⏎") or "line break" for column in words)]
    before = difference(study, Graph())
    heat = torch.zeros(len(groups), 4)
    for row, columns in enumerate(groups.values()):
        for layer in range(4):
            heat[row, layer] = before - difference(
                study, Graph() | patch_activations.at("llm.residual", layers=layer, positions=columns), study.dry
            )
    whole = before - difference(study, Graph(), batch=study.dry)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.6))
    drawn = axes.imshow(100 * heat / whole, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set(xlabel="layer", xticks=range(4), yticks=range(len(labels)), yticklabels=labels)
    axes.spines[:].set_visible(False)
    axes.set_title("States of a picture without water put in")
    for row in range(len(labels)):
        for layer in range(4):
            share = float(100 * heat[row, layer] / whole)
            axes.text(
                layer, row, f"{share:.0f}".replace("-0", "0"), ha="center", va="center", fontsize=11,
                color="white" if share > 60 else "black",
            )  # fmt: skip
    figure.colorbar(drawn, ax=axes, label='way from "yes" to "no" (%)')
    save("patching")


def difference(study: Study, graph: Graph, source: mm.Batch | None = None, batch: mm.Batch | None = None) -> Tensor:
    """The mean logit difference of "yes" and "no"."""
    found = study.log_probabilities(graph, study.wet if batch is None else batch, source)
    return (found[:, study.yes] - found[:, study.no]).mean()


def contributions(study: Study) -> None:
    """The neurons that add most to "yes" against "no" on pictures with water, with their words."""
    shares = write_in(study.lens, study.wet, " yes", against=" no").mean(1)
    best = shares.flatten().topk(8).indices.tolist()
    names: list[str] = []
    for one in best:
        layer, neuron = divmod(one, shares.shape[1])
        (words,) = neuron_vocabulary(study.lens, layer, neuron, top_k=4, through_norm=True)
        value = study.lens.run(keep.at("llm.mlp.post", layers=layer, positions=-1), study.wet)
        positive = value["keep", "llm.mlp.post"][0][0, :, 0, neuron].mean() > 0
        # A negative activation writes the other end of the list.
        said = ", ".join(word for word, _ in (words.top if positive else words.bottom))
        names.append(f"layer {layer}, neuron {neuron}\n{said}")
    _, axes = pyplot.subplots(figsize=(6.4, 5.0))
    axes.barh(range(len(best)), [float(shares.flatten()[one]) for one in best], color=BLUE, height=0.65)
    axes.set(yticks=range(len(best)), xlabel='added to the logit of "yes" less that of "no"')
    axes.set_yticklabels(names, fontsize=10)
    axes.invert_yaxis()
    axes.set_title("Neurons with the largest write-in, and their words", x=-0.42)
    save("write-in")


def mean_and_resample(study: Study) -> None:
    """More and more neurons of a layer held at their mean, or given other samples' values."""
    mean = study.lens.run(mean_activation.at("llm.mlp.post"), [study.wet, study.dry])
    mean = mean["mean_activation", "llm.mlp.post"].float()
    bank = bank_of(study.lens, study.dry, size=200, seed=0)
    order = write_in(study.lens, study.wet, " yes", against=" no").mean(1).flatten().argsort(descending=True)
    numbers, seeds = (0, 8, 16, 32, 64, 128, 256), range(5)
    held: list[float] = []
    drawn: list[list[float]] = []
    for number in numbers:
        marked = torch.zeros(mean.numel(), dtype=torch.bool)
        marked[order[:number]] = True
        neurons = per_layer(marked.view_as(mean))
        at_mean = Graph() | mean_ablate_neurons.bind(neurons=neurons, mean=per_layer(mean)).at("llm.mlp.post")
        held.append(float(study.log_probabilities(at_mean, study.wet)[:, study.yes].mean()))
        graph = Graph() | resample_ablate_neurons.bind(neurons=neurons, bank=per_layer(bank.values)).at(steps="prompt")
        drawn.append(
            [float(study.log_probabilities(graph, bank.draw(study.wet, seed))[:, study.yes].mean()) for seed in seeds]
        )
    values = numpy.array(drawn)
    _, axes = pyplot.subplots()
    places = range(len(numbers))
    axes.plot(places, held, color=BLUE, marker="o", label="held at the mean")
    axes.plot(places, values.mean(1), color=ORANGE, marker="o", label=f"values of other samples, {len(seeds)} draws")
    axes.fill_between(places, values.min(1), values.max(1), color=ORANGE, alpha=0.25, linewidth=0)
    axes.set(xlabel="neurons, of largest write-in first", ylabel='log-probability of "yes" (nats)')
    axes.set_xticks(places, [str(number) for number in numbers])
    axes.set_title("Mean and resample ablation")
    axes.legend()
    save("mean-and-resample")


def save(name: str) -> None:
    """What is drawn, as a picture without a date, and without what no one sees."""
    figure = pyplot.gcf()
    figure.savefig(FOLDER / f"{name}.png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pyplot.rcParams.update(STYLE)
    FOLDER.mkdir(exist_ok=True)
    study = Study()
    for draw in (steering, knock_out, patching, contributions, mean_and_resample):
        draw(study)


if __name__ == "__main__":
    main()
