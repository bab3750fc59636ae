"""Pictures as a viewer shows them: from any form to RGB, and their size from the header of a file alone."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from mmneuron_lens.wire.colours import of_array, to_rgb
from mmneuron_lens.wire.types import Picture
from mmneuron_lens.wire.videos import ENDINGS, refuse_video, said_of_a_video

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each EXIF orientation asks of a viewer; 1, none and any other value ask nothing."""

ORIENTATION, WIDTH, LENGTH = 274, 256, 257
"""Tags of EXIF and TIFF."""

FORMATS = (
    "PNG", "JPEG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "JPEG2000", "PPM", "TGA", "QOI", "DIB", "DDS", "BLP", "ICO",
    "ICNS", "IM", "MSP", "PCX", "PSD", "SGI", "SPIDER", "SUN", "XBM", "FITS",
)  # fmt: skip
"""Those that Pillow reads with its own code, in memory that the header bounds; MPO and APNG are read as JPEG and PNG.
EPS and WMF would run other programs, and the rest are no pictures of a corpus."""

BYTES = 2**29
"""What a file of a picture holds at most: 89 million pixels of three 16-bit channels."""

NOTED = 2**20
"""Bytes of one piece of a PNG's metadata in which an orientation is looked for, at most."""

SLOW = 2**24
"""Pixels that a picture may have where Pillow decodes one after the other in Python, at about a microsecond each."""

SHOWN = 200
"""Characters of an error of Pillow's that a message quotes."""

SCANS = 100
"""Scans of a JPEG, at most. A progressive one has about ten; each is a pass over all its pixels."""


def decode(image: Picture) -> Image.Image:
    """A picture as 8-bit RGB `[height, width]`, as a viewer shows it.

    - image: a path, the bytes of a file, a PIL image, or an array `[height, width]` or `[height, width, channel]` of 1,
      3 or 4 channels (numpy's, or what numpy can read, such as a torch tensor on the CPU).

    - Orientation: the turn that EXIF (or XMP) asks for is made, once. A damaged EXIF block asks for none.
    - Values: 8 bits as they are, 16 bits `v / 257` rounded (of several 16-bit channels Pillow keeps the high byte),
      booleans black and white, floats 0 to 1. Other values are taken where the file says their range, and refused
      where nothing does or where they leave it; see `wire.colours`.
    - Transparency, as a channel, a palette's or one transparent colour, is laid on white.
    - Of several frames or pages the first is taken; of a PIL image, the one it stands at.
    - Colour profiles are not applied.

    Raises `ValueError`, in one line that names the file, for what cannot be read or has no known range, for a format
    that is none of `FORMATS`, for more than `BYTES`, and for more than `PIL.Image.MAX_IMAGE_PIXELS` pixels (`SLOW`
    where Pillow decodes in Python), before one of them is decoded.
    """
    if isinstance(image, (str, os.PathLike)):
        return decode_bytes(file_bytes(image), os.fspath(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_bytes(bytes(image), f"{len(image)} bytes")
    if isinstance(image, Image.Image):
        name = f"PIL image of mode {image.mode}"
        if getattr(image, "tile", ()) and image.format not in (None, "MPO", *FORMATS):
            raise unreadable(UnidentifiedImageError(), name)
        check_size(image.size, name)
        raw = loaded(image, name)
        return rgb(image, raw, turn_of(image), name)
    if hasattr(image, "shape"):
        try:
            picture = of_array(image)
        except ValueError as error:
            raise ValueError(f"Image array: {error}") from error
        check_size(picture.size, "Image array")
        return picture
    raise ValueError(f"An image is a path, bytes, a PIL image or an array, not {type(image).__name__}.")


def size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of the picture in a file as a viewer shows it: of `decode(path)`, from the header alone.

    Raises `ValueError` as `decode` does, for what the header tells.
    """
    with opened(path) as file:
        try:
            return header(file, os.fspath(path))[2]
        except ValueError:
            # Pillow may search a short file from before its start, which raises here and does nothing in memory.
            return header(io.BytesIO(file_bytes(path)), os.fspath(path))[2]


def file_bytes(image: Picture) -> bytes:
    """The bytes of an image file: those of the file itself, or of a lossless one of the picture that `decode` makes.

    Raises `ValueError` for a file of more than `BYTES`.
    """
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        with opened(image) as file:
            whole = os.fstat(file.fileno()).st_size <= BYTES
            # What is no plain file has no size.
            content = by_pillow(lambda: file.read(BYTES + 1), name) if whole else b""
        if not whole or len(content) > BYTES:
            raise ValueError(f"{name}: more than {BYTES} bytes; make the picture smaller.")
        return content
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    buffer = io.BytesIO()
    decode(image).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_bytes(data: bytes, name: str) -> Image.Image:
    """`decode` of a file's bytes; `name` is what errors call it."""
    image, turn, shown = header(io.BytesIO(data), name)
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > SCANS:
        raise ValueError(f"{name}: a JPEG of more than {SCANS} scans, each over all its pixels; save it anew.")
    raw = loaded(image, name)
    # Pillow turns a TIFF while it loads it.
    picture = rgb(image, raw, None if image.format == "TIFF" else turn, name)
    if picture.size != shown:
        raise ValueError(
            f"{name}: not an image that can be read (its header says {shown[0]}x{shown[1]} pixels, "
            f"its pixels are {picture.width}x{picture.height})."
        )
    return picture


def rgb(image: Image.Image, raw: str, turn: Any, name: str) -> Image.Image:
    """A loaded image as RGB, turned; nothing is left in its `info` that asks for it again."""
    try:
        picture = to_rgb(image, raw)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:
        raise unreadable(error, name) from error
    if turn is not None:
        picture = picture.transpose(turn)
    if picture is not image:
        picture.info = {}
    return picture


def header(file: BinaryIO, name: str) -> tuple[Image.Image, Any, tuple[int, int]]:
    """An image of which no pixel is decoded, the turn that it asks for, and its width and height when it is turned."""
    refuse_video(file, name)
    image = by_pillow(lambda: Image.open(file, formats=formats()), name)
    # Pillow turns some of the sizes of a TIFF, too.
    tags = getattr(image, "tag_v2", None)
    size = image.size if tags is None else by_pillow(lambda: (int(tags[WIDTH]), int(tags[LENGTH])), name)
    decoders = {tile[0] for tile in getattr(image, "tile", ())}
    if "fits_gzip" in decoders:
        raise ValueError(f"{name}: a packed FITS, which may hold any number of bytes; save it as PNG.")
    slow = not decoders.isdisjoint(Image.DECODERS)
    check_size(image.size, name, SLOW if slow else None)
    turn = turn_of(image, file)
    sideways = turn is not None and turn not in (TURNS[2], TURNS[3], TURNS[4])
    return image, turn, (size[1], size[0]) if sideways else size


def formats() -> list[str]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return [one for one in FORMATS if one in Image.OPEN]


def turn_of(image: Image.Image, file: BinaryIO | None = None) -> Any:
    """The transposition that EXIF asks a viewer for, or None. file: of an image that is not loaded yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if file is not None and image.format == "PNG":
                image = Image.open(without_pixels(file))
            # A PNG's own method would decode its pixels first.
            return TURNS.get(Image.Image.getexif(image).get(ORIENTATION, 1))
    except Exception:
        # Pillow stumbles over a damaged block in many ways; the picture is as good as it was.
        return None


def loaded(image: Any, name: str) -> str:
    """Decodes an image, and says how its file holds the pixels, in Pillow's words; nothing where that is not known."""
    # Empty once they are decoded.
    tiles = list(getattr(image, "tile", ()))
    if tiles and image.format == "TIFF" and by_pillow(lambda: tiles_end(tiles) < image.tag_v2[LENGTH], name):
        # Pillow would leave the rest black.
        raise ValueError(f"{name}: not an image that can be read (pixels are missing at its end).")
    by_pillow(image.load, name)
    args = tiles[0][3] if tiles else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def tiles_end(tiles: list[Any]) -> int:
    """The row behind the last that is held."""
    return max(tile[1][3] for tile in tiles)


def without_pixels(file: BinaryIO) -> BinaryIO:
    """A PNG without the chunks of its pixels, behind which its EXIF may stand."""
    file.seek(0)
    kept = [file.read(8)]
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind in (b"IDAT", b"fdAT") or length > NOTED:
            file.seek(length + 4, os.SEEK_CUR)
        else:
            kept += [start, file.read(length + 4)]
    return io.BytesIO(b"".join([*kept, struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))]))


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """An image file to be read. Raises `ValueError` where there is none, or it cannot be opened."""
    try:
        return open(path, "rb")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: no such image file.") from error
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: not an image that can be read ({error.strerror}).") from error


def check_size(size: tuple[int, int], name: str, slow: int | None = None) -> None:
    """Raises `ValueError` for a picture of no pixel, of more than `PIL.Image.MAX_IMAGE_PIXELS`, or more than `slow`."""
    limit = Image.MAX_IMAGE_PIXELS
    if 0 in size:
        raise ValueError(f"{name}: {size[0]}x{size[1]} pixels; give a picture of 1 or more each way.")
    if limit is not None and size[0] * size[1] > limit:
        raise ValueError(f"{name}: {size[0]}x{size[1]} pixels {too_many(limit)}")
    if slow is not None and size[0] * size[1] > slow:
        says = f"more than {slow}, in a form that is decoded one pixel at a time; save it as PNG."
        raise ValueError(f"{name}: {size[0]}x{size[1]} pixels are {says}")


def too_many(limit: int | None) -> str:
    return f"are more than {limit}, PIL.Image.MAX_IMAGE_PIXELS; make the picture smaller, or raise that limit."


def by_pillow(step: Callable[[], Any], name: str) -> Any:
    """What a step of Pillow's returns, without its warnings; whatever it raises is a `ValueError` of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow warns above the limit and raises above its double.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return step()
    except Exception as error:
        # Pillow raises whatever a damaged file leads it to; `step` is none of our code.
        raise unreadable(error, name) from error


def unreadable(error: Exception, name: str) -> ValueError:
    """What is raised in place of an error of Pillow's."""
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return ValueError(f"{name}: its pixels {too_many(Image.MAX_IMAGE_PIXELS)}")
    if isinstance(error, UnidentifiedImageError):
        known = f"{name}: not an image that can be read (of no known format)."
        return ValueError(said_of_a_video(name) if name.lower().endswith(ENDINGS) else known)
    says = " ".join(str(error).split())[:SHOWN] or type(error).__name__
    return ValueError(f"{name}: not an image that can be read ({says}).")
