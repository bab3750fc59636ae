"""Shared by all tests: one seed, one thread, tiny lenses."""

from __future__ import annotations

import numpy
import pytest
import tiny_models
import torch
from PIL import Image

import mmneuron_lens  # noqa: F401  (first: it imports beartype before nnsight)
from mmneuron_lens import Lens

LONGEST_FIRST = (
    *("notebooks", "paper", "cli", "long_runs", "compare", "site_values", "planted", "gradients", "examples", "rows"),
    *("many_graphs", "boxes", "tower_boxes", "artifact_damage", "sharing", "moments"),
)
"""Files of tests that take long, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


ARCHITECTURES = ("llava_next", "instructblip", "llava", "blip2")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def tiny_lens(name: str) -> Lens:
    return Lens.wrap(*getattr(tiny_models, name)())


@pytest.fixture(params=["llava_next", "instructblip"])
def lens(request) -> Lens:
    """Each architecture of the paper, tiny and random."""
    return tiny_lens(request.param)


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[Image.Image]:
    """Noise images of `(height, width)`."""
    noise = numpy.random.default_rng(seed)
    return [Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=numpy.uint8)) for size in sizes]


def mixed_batch(lens: Lens):
    """Three images of different sizes and three questions of different lengths."""
    return lens.encode(pictures((40, 56), (64, 30), (32, 32)), ["Is it red?", "how many cars are there?", "why"])
