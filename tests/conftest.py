"""Shared by all tests: one seed, one thread, tiny lenses."""

from __future__ import annotations

import numpy
import pytest
import tiny_models
import torch
from PIL import Image

import mmneuron_lens  # noqa: F401  (first: it imports beartype before nnsight)
from mmneuron_lens import Lens

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
