"""Frames of a driving segment: which of several images a model is given, and as what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from PIL import Image

from interventions.errors import InvalidValue

Frames = Literal["fit", "strip"]
"""`fit`: as many evenly spaced frames as there is room for, or the middle one for a model of one image. `strip`: all of
them side by side as one image, as the paper's code does."""

FRAMES: tuple[Frames, ...] = ("fit", "strip")

Size = tuple[int, int]
"""Width and height in pixels."""


def middle(count: int) -> int:
    """The place of the middle one of `count` frames: what a model of one image is given."""
    return count // 2


def evenly_spaced(chosen: int, count: int) -> tuple[int, ...]:
    """Places of `chosen` of `count` frames, the first and the last among them; of one, the middle."""
    if not 1 <= chosen <= count:
        raise InvalidValue(f"{chosen} of {count} frames cannot be chosen; give 1 to {count}.")
    if chosen == 1:
        return (middle(count),)
    return tuple(round(place * (count - 1) / (chosen - 1)) for place in range(chosen))


def that_fit(sizes: Sequence[Size], room: Callable[[int], int], tokens: Callable[[Size], int]) -> tuple[int, ...]:
    """Places of as many evenly spaced frames as there is room for, of one where not even one fits.

    - sizes: of all frames.
    - room: tokens that so many frames may take together.
    - tokens: how many an image of a size takes.
    """
    for chosen in range(len(sizes), 1, -1):
        places = evenly_spaced(chosen, len(sizes))
        if sum(tokens(sizes[place]) for place in places) <= room(chosen):
            return places
    return evenly_spaced(1, len(sizes))


def strip_size(sizes: Sequence[Size]) -> Size:
    """The size of `strip` of images of these sizes; what its tokens are counted by. Raises `InvalidValue` for none."""
    if not sizes:
        raise InvalidValue("no frame to show; give one or more.")
    height = sizes[0][1]
    return sum(max(1, round(width * height / tall)) for width, tall in sizes), height


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """One RGB picture of all of them side by side, from left to right, those of another height scaled to the first's.

    Raises `InvalidValue` for no picture.
    """
    pasted, x = Image.new("RGB", strip_size([picture.size for picture in pictures])), 0
    for picture in pictures:
        size = strip_size([(1, pasted.height), picture.size])[0] - 1, pasted.height
        pasted.paste(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC), (x, 0))
        x += size[0]
    return pasted
