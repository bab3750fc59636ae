"""What a program around this one has set changes no bit: torch's default dtype and device, modes, and seeds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy
import pytest
import tiny_models
import torch
from conftest import pictures, tiny_lens
from drawn_corpus import write_corpus

from interventions import (
    count_checked,
    direct_logit_attribution,
    lens_entropy,
    logit_lens,
    mean_activation,
    root_mean_square,
    sum_activations,
)
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.evaluation.claims import claims
from mmneuron_lens.evaluation.findings import Evidence
from mmneuron_lens.experiments.ablate import ablate
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.deviate import deviate
from mmneuron_lens.experiments.embed import component_rows, embed_images
from mmneuron_lens.experiments.entropy import read_entropy
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.neurons.controls import false_discovery_rate, halves_overlap
from mmneuron_lens.neurons.selection import random_like, select
from mmneuron_lens.neurons.silent import silent_neurons
from mmneuron_lens.neurons.stability import stability

SELECTION = (0.3, 0.6)


def reads(lens: Lens) -> dict[tuple[str, str], Any]:
    """Interventions that make numbers of their own, on a padded batch."""
    batch = lens.encode(pictures((40, 56), (64, 30)), ["is it?", "how many?"])
    direction = torch.arange(32, dtype=torch.float32, device="cpu")
    graph = count_checked.at("*.act") | mean_activation | sum_activations | logit_lens | lens_entropy
    graph |= root_mean_square.bind(epsilon=1e-6) | direct_logit_attribution.bind(direction=direction)
    return dict(lens.run(graph, batch))


def stages(lens: Lens, corpus: dict[str, list[Any]]) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Everything that makes numbers, each from what those before it made."""
    return {
        "reads": lambda _: reads(lens),
        "counts": lambda _: [count_domain(lens, some) for some in corpus.values()],
        "means": lambda _: mean_activations(lens, corpus),
        "entropies": lambda _: [read_entropy(lens, some) for some in corpus.values()],
        "mean entropies": lambda made: [one.mean() for one in made["entropies"]],
        "trace": lambda _: trace_sample(lens, corpus["common"][0]),
        "embeddings": lambda _: embed_images(lens, corpus),
        "components": lambda made: component_rows(made["embeddings"]),
        "selection": lambda made: select(made["counts"], *SELECTION),
        "random": lambda made: {
            (site, match): random_like(mask, 3, match)
            for site, mask in made["selection"].masks.items()
            for match in ("module", "layer")
        },
        "false discovery": lambda made: false_discovery_rate(made["counts"], made["selection"], permutations=3),
        "halves": lambda made: halves_overlap(made["counts"], *SELECTION),
        "stability": lambda made: stability(made["counts"], *SELECTION, draws=2),
        "stability's frame": lambda made: made["stability"].frame().rows(),
        "silent": lambda made: silent_neurons(made["counts"], "vision.mlp.act"),
        "deviations": lambda made: deviate(lens, made["selection"], corpus["common"], random_draws=1),
        "answers": lambda made: ablate(
            lens, made["selection"], {"common": corpus["common"]}, random_draws=1, max_new_tokens=2
        ),
        "claims": lambda made: claims(
            [Evidence(made["selection"], made["counts"], made["entropies"], deviations=[made["deviations"]])], 3
        ),
        "proof": lambda _: list(lens.prove()),
    }


def digest(value: Any) -> str:
    """A hash of every number in a value, to the last bit, and of every dtype."""
    found = hashlib.sha256()

    def walk(one: Any) -> None:
        if isinstance(one, torch.Tensor):
            found.update(repr((one.dtype, one.shape, one.tolist())).encode())
        elif isinstance(one, Artifact):
            walk(one.packed()[0])
        elif is_dataclass(one):
            walk([getattr(one, field.name) for field in fields(one)])
        elif isinstance(one, dict):
            walk(sorted(one.items(), key=repr))
        elif isinstance(one, list | tuple):
            found.update(str(len(one)).encode())
            for part in one:
                walk(part)
        else:
            found.update(repr(one).encode())

    walk(value)
    return found.hexdigest()


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    # A device where nothing can be computed: whatever is made there by default is seen.
    "another device": lambda: default_device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": deterministic,
}


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_what_is_set_around_changes_no_bit_and_stays_set(name, tmp_path):
    corpus = by_domain(read_folder(write_corpus(tmp_path, images=6))[0])
    lens = tiny_lens(name)
    random.seed(7)
    numpy.random.seed(7)
    seeds = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    made: dict[str, Any] = {}
    for stage, make in stages(lens, corpus).items():
        made[stage] = make(made)
    expected = {stage: digest(value) for stage, value in made.items()}
    assert torch.equal(torch.get_rng_state(), seeds[0])
    assert random.getstate() == seeds[1]
    assert numpy.random.get_state()[1].tolist() == seeds[2]
    different = []
    for around, enter in AROUND.items():
        for stage, make in stages(lens, corpus).items():
            with enter():
                before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
                value = make(made)
                assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
            if digest(value) != expected[stage]:
                different.append((around, stage))
    assert not different


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_checkpoint_is_loaded_as_it_is(dtype, tmp_path):
    folder = tiny_models.checkpoint("llava_next", tmp_path)
    expected = [(one.dtype, one.model.fingerprint) for one in (Lens(folder), Lens.weightless(folder))]
    with default_dtype(dtype):
        assert [(one.dtype, one.model.fingerprint) for one in (Lens(folder), Lens.weightless(folder))] == expected
