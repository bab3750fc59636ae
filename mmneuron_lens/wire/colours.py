"""Colours: an image of any mode, or an array, to 8-bit RGB. A range of values is known or refused, never guessed.

- 8 bits: as they are. Booleans: black and white. 16 bits without a sign: 0 to 65535. 12-bit TIFF: 0 to 4095.
- Floats: 0 to 1. PGM of more than 8 bits: 0 to 65535, which Pillow scales it to.
- Floats and 32-bit integers of a TIFF that has SMinSampleValue and SMaxSampleValue: from the one to the other.
- All else is refused, and so are values outside their range: what was shown would be guessed, or saturated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy
from PIL import Image

BITS, PHOTOMETRIC, SAMPLE_FORMAT, LEAST, GREATEST = 258, 262, 339, 340, 341
"""Tags of TIFF: BitsPerSample, PhotometricInterpretation, SampleFormat, SMinSampleValue, SMaxSampleValue."""

CURE = "give 8-bit values, or floats scaled to 0..1"

BAND = 2**20
"""Pixels that are converted at once."""

CHANNELLED = ("RGBA", "LA", "PA", "RGBa", "La", "P")
"""Modes whose transparency is a channel, or the palette's; that of others is one colour."""


def to_rgb(image: Image.Image, raw: str = "") -> Image.Image:
    """A loaded image of any mode as RGB, transparency laid on white; itself where there is nothing to do.

    - raw: Pillow's name of how the file holds the pixels, where it is known.

    Made in bands of `BAND` pixels, so that what lies between takes no memory to speak of. Raises `ValueError` for
    values of no known range, or outside it.
    """
    keyed, tags = "transparency" in image.info and image.mode not in CHANNELLED, getattr(image, "tag_v2", {})
    if image.mode == "RGB" and not keyed:
        return image
    if image.mode == "L" and 2 in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError(f"8-bit values with a sign have no known range; {CURE}.")
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("its palette is missing; save it as RGB.")
    boxes = bands(*image.size)
    numbers = image.mode in ("I", "F") or image.mode.startswith("I;16")
    greys = scaled(lambda: cropped(image, boxes), *range_of(image, tags)) if numbers else None
    picture = Image.new("RGB", image.size)
    for box in boxes:
        part = image.crop(box)
        if greys is not None:
            grey = next(greys)
            # White is 0: of more than 8 bits Pillow leaves this to us.
            shown = Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == 0 else grey).convert("RGB")
        elif image.mode in CHANNELLED and image.has_transparency_data:
            shown = on_white(part)
        else:
            shown = part.convert("RGB")
        if keyed:
            shown.paste("white", mask=where(part, image.info["transparency"], raw))
        picture.paste(shown, box)
    return picture


def bands(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Boxes of whole rows that cover a picture from top to bottom, of at most `BAND` pixels, or of one row."""
    rows = max(1, BAND // width)
    return [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]


def cropped(image: Image.Image, boxes: list[tuple[int, int, int, int]]) -> Iterator[numpy.ndarray]:
    """The values of a picture, box by box."""
    return (numpy.asarray(image.crop(box)) for box in boxes)


def of_array(image: Any) -> Image.Image:
    """An array `[height, width]` or `[height, width, 1, 3 or 4]` as RGB. Raises `ValueError` for any other."""
    try:
        array = numpy.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        says = " ".join(str(error).split())
        raise ValueError(f"numpy cannot read it ({says}); give a numpy array.") from error
    shape = list(array.shape)
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] > 4:
        raise ValueError(f"{shape} has its channels first; give [height, width, channel]: numpy.moveaxis(array, 0, 2).")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ValueError(f"an image array is [height, width] or [height, width, 1, 3 or 4], not {shape}.")
    if 0 in shape:
        raise ValueError("it holds no pixel; give 1 or more in height and width.")
    if numpy.ma.is_masked(image):
        raise ValueError("some of its values are masked; fill them.")
    if shape[2:] == [1]:
        array = array[:, :, 0]
    wide = array.dtype.kind == "u" and array.dtype.itemsize == 2
    if wide or array.dtype.kind in "bf":
        rows = [slice(top, bottom) for _, top, _, bottom in bands(array[0].size, len(array))]
        array = numpy.concatenate(list(scaled(lambda: (array[some] for some in rows), 0, 65535 if wide else 1)))
    elif array.dtype != numpy.uint8:
        raise ValueError(f"values of {array.dtype} have no known range; .astype(numpy.uint8) if they are 0 to 255.")
    return to_rgb(Image.fromarray(array))


def range_of(image: Image.Image, tags: Mapping[int, Any]) -> tuple[float, float]:
    """Which values of an image of more than 8 bits are black and white. Raises `ValueError` where nothing tells."""
    if image.mode.startswith("I;16") and image.format != "FITS":
        return 0, 2 ** tags.get(BITS, (16,))[0] - 1
    try:
        low, high = float(numpy.min(tags[LEAST])), float(numpy.max(tags[GREATEST]))
    except (KeyError, TypeError, ValueError):
        # Not there, or no numbers.
        low = high = 0
    if -math.inf < low < high < math.inf:
        return low, high
    if image.mode == "F":
        return 0, 1
    if image.mode == "I" and image.format == "PPM":
        return 0, 65535
    raise ValueError(f"integers of more than 8 bits (mode {image.mode}) have no known range; {CURE}.")


def scaled(parts: Callable[[], Iterable[numpy.ndarray]], low: float, high: float) -> Iterator[numpy.ndarray]:
    """Values from `low` to `high` as uint8 0 to 255, rounded, part by part. Raises `ValueError` for one outside."""
    ends = [(part.min(), part.max()) for part in parts()]
    least, greatest = numpy.min([least for least, _ in ends]), numpy.max([greatest for _, greatest in ends])
    if not low <= least <= greatest <= high:
        raise ValueError(f"values from {least:g} to {greatest:g} lie outside {low:g} to {high:g}; {CURE}.")
    for part in parts():
        exact = numpy.float32 if part.dtype.kind in "bu" else numpy.float64
        yield numpy.rint((part.astype(exact) - exact(low)) * exact(255 / (high - low))).astype(numpy.uint8)


def on_white(image: Image.Image) -> Image.Image:
    """An image with transparency as RGB, on white."""
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")


def where(image: Image.Image, key: Any, raw: str) -> Image.Image:
    """A mask of the pixels that have the one transparent colour. Raises `ValueError` where they cannot be told."""
    values = numpy.asarray(image.convert("L") if image.mode == "1" else image)
    values = values.reshape(*values.shape[:2], -1)
    colour = numpy.atleast_1d(key)
    fits = colour.dtype.kind in "iu" and colour.shape == values.shape[2:]
    # Of several 16-bit channels Pillow keeps the high bytes, of the transparent colour all.
    if not fits or raw.startswith("RGB;16") or (values.dtype == numpy.uint8 and colour.max() > 255):
        raise ValueError(f"transparent colour {key!r} is none of its 8-bit colours; give it a channel of transparency.")
    # Grey of 2 or 4 bits it stretches to 8, but not the transparent one.
    same = (values == colour * {"L;2": 85, "L;4": 17}.get(raw, 1)).all(-1)
    return Image.fromarray(same.astype(numpy.uint8) * 255)
