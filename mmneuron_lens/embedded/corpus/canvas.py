"""What the five domains share: a question's form, a choice that keeps answers balanced, and a few painting helpers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFont

Colour = tuple[int, int, int]
Facts = dict[str, str]

COLOURS: dict[str, Colour] = {
    "red": (205, 40, 40), "green": (40, 160, 60), "blue": (45, 80, 205), "yellow": (235, 205, 50),
}  # fmt: skip


class Question(NamedTuple):
    """A question about a scene. `options` are texts without letters; the answer of such a question is the letter."""

    question: str
    answer: str
    kind: str
    options: tuple[str, ...] = ()


def yes_no(random: Random, truth: str, choices: Sequence[str], wording: str) -> Question:
    """Ask whether a fact has a value: the answer is drawn first, so yes and no are equally frequent."""
    if random.random() < 0.5:
        return Question(wording.format(truth), "yes", "yes/no")
    return Question(wording.format(random.choice([c for c in choices if c != truth])), "no", "yes/no")


def with_options(random: Random, truth: str, choices: Sequence[str], question: str) -> Question:
    """Ask with all choices as shuffled options."""
    options = tuple(random.sample(list(choices), len(choices)))
    return Question(question, chr(65 + options.index(truth)), "option", options)


def vary(random: Random, colour: Colour, spread: int = 14) -> Colour:
    """A colour near `colour`."""
    return tuple(max(0, min(255, c + random.randint(-spread, spread))) for c in colour)  # type: ignore[return-value]


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter colour."""
    return tuple(max(0, min(255, round(c * factor))) for c in colour)  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _noise_sheet() -> np.ndarray:
    """Gaussian noise [512, 512], from which every image cuts its own piece (drawing anew costs a millisecond)."""
    return np.random.default_rng(20250).standard_normal((512, 512)).astype(np.float32)


def add_noise(image: Image.Image, random: Random, strength: float) -> Image.Image:
    """The image with grain of `strength` grey levels, the same in the three channels."""
    width, height = image.size
    x, y = random.randint(0, 511 - width), random.randint(0, 511 - height)
    grain = (_noise_sheet()[y : y + height, x : x + width, None] * strength).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.int16) + grain, 0, 255).astype(np.uint8))


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size)


def box(x: float, y: float, half_width: float, half_height: float | None = None) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) around a centre."""
    half_height = half_width if half_height is None else half_height
    return (x - half_width, y - half_height, x + half_width, y + half_height)
