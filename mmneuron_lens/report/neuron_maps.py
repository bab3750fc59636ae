"""Maps of activation over a picture: how they are enlarged, coloured and outlined, on the page and in figures alike."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

RAMP = ((59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 240, 180))
"""Colours from the smallest activation to the largest: even steps of brightness, told apart with any colour vision."""

OPACITY = 0.72
"""Of the largest activation; nothing is laid on the picture where a neuron is not active."""

SHARE = 0.95
"""The outline goes around what is above this quantile of the map."""

HIGHEST = 255
"""What the largest activation is in a map."""


def enlarged(values: UInt8[Tensor, "side side"], height: int, width: int) -> Float32[Tensor, "height width"]:
    """The map in so many pixels, bilinear between the centres of its cells and constant outside of them."""
    spread = torch.nn.functional.interpolate(
        values[None, None].float(), size=(height, width), mode="bilinear", align_corners=False
    )
    return spread[0, 0]


def outline_level(values: UInt8[Tensor, "side side"]) -> float | None:
    """The value that the outline follows: `SHARE` of the cells are below it. None for a map without activation.

    Where fewer cells than that are active at all, it goes around the active ones.
    """
    if not bool(values.any()):
        return None
    level = float(torch.quantile(values.flatten().float(), SHARE))
    return min(max(level, 0.5), HIGHEST - 0.5)


def coloured(values: Float32[Tensor, "height width"]) -> UInt8[Tensor, "height width channel"]:
    """Red, green, blue and opacity of enlarged values: the more active, the brighter and the less transparent."""
    share = (values / HIGHEST).clamp(0, 1)
    ramp = torch.tensor(RAMP, dtype=torch.float32)
    place = share * (len(RAMP) - 1)
    below = place.floor().long().clamp(max=len(RAMP) - 2)
    colour = ramp[below] + (place - below)[..., None] * (ramp[below + 1] - ramp[below])
    opacity = 255 * OPACITY * share
    return torch.cat([colour, opacity[..., None]], dim=-1).round().to(torch.uint8)


def outline(values: UInt8[Tensor, "side side"], level: float) -> list[list[tuple[float, float]]]:
    """Lines around what is above the level, each a list of (x, y) in shares of the picture."""
    from contourpy import contour_generator

    rows, columns = values.shape
    padded = np.pad(values.numpy().astype(float), 1, mode="edge")
    x, y = _places(columns), _places(rows)
    lines = contour_generator(x, y, padded).lines(level)
    return [[(float(across), float(down)) for across, down in np.asarray(line)] for line in lines]


def png_of(values: UInt8[Tensor, "side side"], height: int, width: int) -> bytes:
    """The map as a PNG with transparency, to be laid on a picture of these proportions."""
    buffer = BytesIO()
    Image.fromarray(coloured(enlarged(values, height, width)).numpy(), "RGBA").save(buffer, format="PNG")
    return buffer.getvalue()


def _places(cells: int) -> np.ndarray:
    """Edge, centres of the cells, edge."""
    return np.concatenate([[0.0], (np.arange(cells) + 0.5) / cells, [1.0]])
