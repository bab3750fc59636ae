"""Images in any form to RGB pictures."""

from __future__ import annotations

import io
import os

import numpy
from PIL import Image

from mmneuron_lens.wire.types import Picture


def decode(image: Picture) -> Image.Image:
    """A path, the bytes of a file, an array `[height, width]` or `[height, width, channel]`, or a PIL image as RGB.

    Grey, palette, transparent and 16-bit images become 8-bit RGB; transparency is laid on white, 16-bit and
    float images are scaled to the full range of their type (floats: 0 to 1). Raises `ValueError` saying what
    could not be read.
    """
    if isinstance(image, (str, os.PathLike)):
        if not os.path.exists(image):
            raise ValueError(f"{image}: no such image file.")
        with open(image, "rb") as file:
            return decode_bytes(file.read(), str(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_bytes(bytes(image), f"{len(image)} bytes")
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if hasattr(image, "shape"):
        return from_array(numpy.asarray(image))
    raise ValueError(f"An image is a path, bytes, a PIL image or an array, not {type(image).__name__}.")


def file_bytes(image: Picture) -> bytes:
    """The bytes of an image file: those of the file itself, or of a lossless one made from a picture or array."""
    if isinstance(image, (str, os.PathLike)):
        with open(image, "rb") as file:
            return file.read()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    buffer = io.BytesIO()
    decode(image).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_bytes(data: bytes, name: str) -> Image.Image:
    try:
        return to_rgb(Image.open(io.BytesIO(data)))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not an image that can be read ({error}).") from error


def to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        return Image.fromarray((numpy.asarray(image).clip(0, 65535) // 257).astype(numpy.uint8)).convert("RGB")
    if image.mode == "F":
        return from_array(numpy.asarray(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def from_array(array: numpy.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"An image array is [height, width] or [height, width, 1, 3 or 4], not {list(array.shape)}.")
    if array.dtype.kind == "f":
        array = (array.clip(0, 1) * 255).round().astype(numpy.uint8)
    elif array.dtype == numpy.uint16:
        array = (array // 257).astype(numpy.uint8)
    elif array.dtype == bool:
        array = array.astype(numpy.uint8) * 255
    return to_rgb(Image.fromarray(array.astype(numpy.uint8)))
