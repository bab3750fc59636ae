"""A corpus for examples: noise pictures in which the middle of a map's cell is that of a pixel, one in two domains."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from conftest import pictures
from drawn_corpus import row, write_rows
from hooks import outputs
from torch import Tensor

from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens

SIZES = ((72, 120), (120, 72), (72, 72), (24, 24))
"""Height and width: 24 times an odd number, so that the middle of each cell of a map is that of a pixel."""

QUESTIONS = ("Which color is used in the figure?", "Is a water area present?", "why")

PATHS = {
    "embedded/llava-next": {
        "vision.mlp.act": ("model.vision_tower.encoder.layers", "mlp.activation_fn"),
        "projector.act": ("model.multi_modal_projector.act", ""),
        "llm.mlp.act": ("model.language_model.layers", "mlp.act_fn"),
    },
    "embedded/instructblip": {
        "vision.mlp.act": ("vision_model.encoder.layers", "mlp.activation_fn"),
        "qformer.query.act": ("qformer.encoder.layer", "intermediate_query.intermediate_act_fn"),
        "qformer.text.act": ("qformer.encoder.layer", "intermediate.intermediate_act_fn"),
        "llm.mlp.act": ("language_model.model.layers", "mlp.act_fn"),
    },
    "embedded/idefics3": {
        "vision.mlp.act": ("model.vision_model.encoder.layers", "mlp.activation_fn"),
        "llm.mlp.act": ("model.text_model.layers", "mlp.act_fn"),
    },
}
"""Where the activation modules of the embedded models lie, by hand: the list of layers, and the path in each layer."""


def write_example_corpus(folder: Path, questions: int = 2) -> dict[str, list[Sample]]:
    """Two domains of four pictures, each with some questions; the last picture of both is the same file's bytes."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for seed, domain in enumerate(("common", "medical")):
        for number, picture in enumerate(pictures(*SIZES, seed=seed)):
            picture.save(folder / "images" / f"{domain}{number}.png")
            rows += [row(domain, number, QUESTIONS[(number + place) % 3]) for place in range(questions)]
    shutil.copy(folder / "images" / "common3.png", folder / "images" / "medical3.png")
    return by_domain(read_folder(write_rows(folder, rows))[0])


def some_neurons(lens: Lens, count: int = 3) -> dict[str, Tensor]:
    """So many neurons of the first and the last layer of every site, as masks; one more in the last."""
    masks: dict[str, Tensor] = {}
    for site in PATHS[lens.name]:
        place = lens.architecture.place(site)
        layers, neurons = place.layers or 1, place.sizes["neuron"]
        masks[site] = torch.zeros(layers, neurons, dtype=torch.bool)
        masks[site][0, torch.arange(count) * 7 % neurons] = True
        masks[site][-1, torch.arange(count + 1) * 11 % neurons] = True
    return masks


def hooked_activations(lens: Lens, samples: Sequence[Sample]) -> dict[tuple[str, str], dict[str, list[Tensor]]]:
    """Of every question by domain and id, alone in a plain forward: by site and layer the activations [position,
    neuron], tiles one after the other.
    """
    found: dict[tuple[str, str], dict[str, list[Tensor]]] = {}
    paths = {site: paths_of(lens, site) for site in PATHS[lens.name]}
    flat = [path for some in paths.values() for path in some]
    for sample in samples:
        batch, _ = encode(lens, [sample], "identification")
        assert batch is not None
        seen = outputs(lens.module, flat, lambda batch=batch: lens.module(**batch.inputs))
        found[sample.domain, sample.id] = {
            site: [seen[path][0].flatten(0, -2) for path in some] for site, some in paths.items()
        }
    return found


def paths_of(lens: Lens, site: str) -> list[str]:
    before, inside = PATHS[lens.name][site]
    if not inside:
        return [before]
    return [f"{before}.{layer}.{inside}" for layer in range(len(lens.module.get_submodule(before)))]


def by_image(samples: Mapping[str, Sequence[Sample]]) -> dict[bytes, list[Sample]]:
    """The questions of each picture, told apart by its bytes."""
    found: dict[bytes, list[Sample]] = {}
    for some in samples.values():
        for one in some:
            found.setdefault(one.images[0].read_bytes(), []).append(one)
    return found
