"""Real cards: what neurons answer to in real pictures, and every card held to a plain hook.

    python benchmarks/real_cards.py FOLDER [--model embedded/smol] [--neurons 50] [--top 5] [--dtype float32]
    python benchmarks/real_cards.py FOLDER --model random --layers 2 --vision-layers 3 --dtype bfloat16

FOLDER holds pictures with a questions.jsonl; without one, each folder in it is a domain, and every picture is asked
one question. `random` is a LLaVA-NeXT of the published 7B configuration, or of fewer layers, with random weights.

Of some neurons of every site, drawn, it reads the examples, and checks of every card: that the activation at its
position is the largest of a plain hook on the activation module, in a forward of that question alone; that it is where
that hook's argmax is, but for rounding; and, where the position lies in a picture, that the map's largest cell lies in
its box. Ends with 1 where a card fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import models
import torch
from torch import Tensor

from mmneuron_lens import Lens
from mmneuron_lens.artifacts.neuron_examples import SIDE, NeuronExamples
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.examples import read_examples

QUESTION = "What is shown in this picture?"
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
AGREEMENT = {torch.float32: 1e-3}
"""How far two forwards may be apart, as a share of the neuron's largest; otherwise a tenth."""


@dataclass
class Found:
    """What the cards of one model came to."""

    cards: int = 0
    same_place: int = 0
    in_pictures: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)


def questions(folder: Path) -> dict[str, list[Sample]]:
    """The folder's questions by domain."""
    if (folder / "questions.jsonl").is_file():
        return by_domain(read_folder(folder)[0])
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    made = [Sample(str(path.relative_to(folder)), path.parent.name, (path,), QUESTION, ()) for path in files]
    return by_domain(made)


def model_of(options: argparse.Namespace) -> Lens:
    if options.model != "random":
        return Lens(options.model, dtype=options.dtype, device=options.device)
    text = {"hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    return models.random_llava_next(
        {**text, "num_hidden_layers": options.layers},
        {**vision, "num_hidden_layers": options.vision_layers},
        getattr(torch, options.dtype or "float32"),
        vision_feature_layer=-2,
        name="random-7b",
    )


def drawn(lens: Lens, count: int, seed: int = 0) -> dict[str, Tensor]:
    """So many neurons of every site, as masks."""
    draw, masks = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for site in (site for site in lens.sites if site.endswith(".act")):
        place = lens.architecture.place(site)
        layers, neurons = place.layers or 1, place.sizes["neuron"]
        chosen = torch.randperm(layers * neurons, generator=draw)[:count]
        masks[site] = torch.zeros(layers * neurons, dtype=torch.bool)
        masks[site][chosen] = True
        masks[site] = masks[site].view(layers, neurons)
    return masks


def hooked(lens: Lens, sample: Sample, wanted: Mapping[str, Mapping[int, Tensor]]) -> dict[tuple[str, int], Tensor]:
    """Activations of the wanted neurons at every position of one question: by site and layer [position, neuron]."""
    batch, _ = encode(lens, [sample], "identification")
    assert batch is not None
    seen: dict[tuple[str, int], Tensor] = {}
    handles = []
    for site, by_layer in wanted.items():
        for layer, path in lens.architecture.place(site).paths():
            own = by_layer.get(layer or 0)
            if own is None:
                continue

            def hook(_module, _given, output, key=(site, layer or 0), own=own) -> None:
                seen[key] = output.flatten(0, -2)[:, own.to(output.device)].float().cpu()

            handles.append(lens.module.get_submodule(path).register_forward_hook(hook))
    try:
        with torch.no_grad():
            lens.module(**batch.to(lens.device).inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def compare(lens: Lens, found: NeuronExamples, samples: Mapping[str, Sequence[Sample]]) -> Found:
    """Every card against a plain hook."""
    told, allowed = Found(), AGREEMENT.get(lens.dtype, 0.1)
    by_id = {(domain, one.id): one for domain, some in samples.items() for one in some}
    for number, shown in enumerate(found.samples):
        wanted: dict[str, dict[int, Tensor]] = {}
        for site, neurons in found.neurons.items():
            own = neurons[(found.sample[site] == number).any(1)]
            wanted[site] = {layer: own[own[:, 0] == layer, 1] for layer in own[:, 0].unique().tolist()}
        seen = hooked(lens, by_id[shown.domain, shown.id], wanted)
        for site, neurons in found.neurons.items():
            for row, rank in (found.sample[site] == number).nonzero().tolist():
                layer, neuron = neurons[row].tolist()
                column = int((wanted[site][layer] == neuron).nonzero())
                check(found, site, row, rank, seen[site, layer][:, column], allowed, told)
    return told


def check(found: NeuronExamples, site: str, row: int, rank: int, values: Tensor, allowed: float, told: Found) -> None:
    """One card."""
    layer, neuron = found.neurons[site][row].tolist()
    name = f"{site} {layer}/{neuron}, example {rank + 1}"
    at, largest = int(found.position[site][row, rank]), float(values.max())
    scale = max(float(values.abs().max()), 1e-6)
    apart = max(abs(float(found.activation[site][row, rank]) - largest), largest - float(values[at])) / scale
    told.cards, told.worst = told.cards + 1, max(told.worst, apart)
    told.same_place += int(values.argmax()) == at
    if apart > allowed:
        told.wrong.append(f"{name}: {float(values[at]):.5g} at {at}, and a hook has {largest:.5g} at {values.argmax()}")
    box, cells = found.box[site][row, rank], found.maps[site][row, rank]
    if bool(box.isnan().any()) or largest <= 0:
        return
    told.in_pictures += 1
    rows, columns = (cells == cells.max()).nonzero(as_tuple=True)
    left, top, right, bottom = (SIDE * box).tolist()
    inside = (rows + 1 > top) & (rows < bottom) & (columns + 1 > left) & (columns < right)
    if not bool(inside.any()) or int(cells.max()) < 255 * (1 - allowed):
        told.wrong.append(f"{name}: the map's largest cell, {int(cells.max())}, is not in the box {box.tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="embedded/smol")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vision-layers", type=int, default=3)
    parser.add_argument("--neurons", type=int, default=50, help="of every site")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--images", type=int, default=None, help="of every domain")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    lens = model_of(options)
    samples = {domain: some[: options.images] for domain, some in questions(options.folder).items()}
    begun = time.perf_counter()
    masks = drawn(lens, options.neurons)
    found = read_examples(lens, samples, masks, options.top, batch_size=options.batch_size)
    read = time.perf_counter()
    told = compare(lens, found, samples)
    count = sum(map(len, samples.values()))
    print(f"{lens.name}, {lens.dtype}, {count} questions: {found!r}")
    print(f"read in {read - begun:.1f} s; checked in {time.perf_counter() - read:.1f} s")
    passes = found.parameters["difference of the two passes"]
    print(f"two passes differ by {passes:.2g}, and a plain hook by {told.worst:.2g}, of a neuron's largest at most")
    print(
        f"{told.cards} cards: {told.same_place} at the hook's own argmax; {told.in_pictures} lie in a picture; "
        f"{len(told.wrong)} wrong"
    )
    for one in told.wrong[:20]:
        print(f"  {one}")
    sys.exit(bool(told.wrong))


if __name__ == "__main__":
    main()
