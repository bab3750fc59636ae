"""Image files written byte by byte: depths, tags and orders of chunks that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

from PIL import Image

Chunk = tuple[bytes, bytes]


def png(
    size: tuple[int, int],
    depth: int,
    kind: int,
    rows: Sequence[bytes],
    before: Sequence[Chunk] = (),
    after: Sequence[Chunk] = (),
) -> bytes:
    """A PNG.

    - size: width and height.
    - kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
    - before, after: chunks around the pixels.
    """
    header = (b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    pixels = (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    chunks = [header, *before, pixels, *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff(
    size: tuple[int, int],
    pixels: bytes,
    bits: int,
    form: int = 1,
    photometric: int = 1,
    floats: Mapping[int, float] | None = None,
    orientation: int = 1,
) -> bytes:
    """A grey little-endian TIFF of one strip.

    - form: of the samples: 1 without a sign, 2 with one, 3 float.
    - photometric: 0 where white is 0.
    - floats: further tags.
    """
    tags = {
        256: (4, size[0]), 257: (4, size[1]), 258: (3, bits), 259: (3, 1), 262: (3, photometric), 273: (4, 8),
        274: (3, orientation), 277: (3, 1), 278: (4, size[1]), 279: (4, len(pixels)), 339: (3, form),
    }  # fmt: skip
    fields = [struct.pack("<HHII", tag, code, 1, value) for tag, (code, value) in tags.items()]
    fields += [struct.pack("<HHIf", tag, 11, 1, value) for tag, value in (floats or {}).items()]
    pixels += b"\0" * (len(pixels) % 2)
    directory = struct.pack("<H", len(fields)) + b"".join(sorted(fields, key=lambda one: struct.unpack("<H", one[:2])))
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + struct.pack("<I", 0)


def exif(orientation: int) -> bytes:
    """An EXIF block, as every format takes it."""
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()
