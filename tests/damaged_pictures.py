"""Image files for the fuzz: every mode in every format that Pillow writes, whole, turned, damaged, or no picture."""

from __future__ import annotations

import io
import math
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from picture_files import exif, png, tiff
from PIL import Image

WIDTH, HEIGHT = 24, 17
TURNED = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "AVIF")
"""Formats that hold an orientation. The last reads a block of EXIF before it writes it."""
NOT_READ = ("PDF", "EPS", "PALM")
"""Formats that Pillow writes and does not read, EPS without another program."""
REFUSED = ("EPS",)
"""Formats that would run another program."""
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""What a field of a header is set to."""
PHOTOGRAPHS = Path(__file__).parent.parent / "mmneuron_lens" / "embedded" / "images"


class Drawn(NamedTuple):
    """A file, and what must come of it: its size when it is decoded, "refused", or either where it is None."""

    content: bytes
    ending: str
    expected: tuple[int, int] | str | None


class Whole(NamedTuple):
    form: str
    mode: str
    content: bytes

    @property
    def ending(self) -> str:
        return self.form.lower()


@cache
def wholes() -> list[Whole]:
    """One picture of noise in every mode and format that Pillow writes; floats within 0 to 1."""
    Image.init()
    made = []
    noise = random.Random(1)
    for form in sorted(Image.SAVE):
        # An icon for a Mac is written in ten sizes, the largest of a million pixels.
        for mode in ["RGBA"] if form == "ICNS" else Image.MODES:
            buffer = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    _noise(mode, noise).save(buffer, form)
                except (OSError, ValueError, KeyError):
                    # A format does not take every mode.
                    continue
            made.append(Whole(form, mode, buffer.getvalue()))
    return made


def _noise(mode: str, draw: random.Random) -> Image.Image:
    if mode == "F":
        return Image.frombytes(mode, (WIDTH, HEIGHT), struct.pack("=408f", *(draw.random() for _ in range(408))))
    bits = {"1": 3 / 24, "I": 4}.get(mode, len(Image.new(mode, (1, 1)).tobytes()))
    image = Image.frombytes(mode, (WIDTH, HEIGHT), draw.randbytes(int(WIDTH * HEIGHT * bits)))
    if mode in ("P", "PA"):
        image.putpalette(draw.randbytes(768))
    return image


def whole(draw: random.Random) -> Drawn:
    """As it was written."""
    one = draw.choice(wholes())
    if one.form in REFUSED:
        return Drawn(one.content, one.ending, "refused")
    unknown = one.form in NOT_READ or one.mode == "I" or one.form == "SPIDER"
    return Drawn(one.content, one.ending, None if unknown else size_of(one))


def size_of(one: Whole) -> tuple[int, int]:
    """Icons have sizes of their own."""
    return {"ICO": (16, 11), "ICNS": (1024, 1024)}.get(one.form, (WIDTH, HEIGHT))


def turned(draw: random.Random) -> Drawn:
    """With an orientation."""
    form, orientation = draw.choice(TURNED), draw.randint(1, 8)
    size = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    return Drawn(with_exif(form, exif(orientation)), form.lower(), size)


@cache
def with_exif(form: str, block: bytes) -> bytes:
    buffer = io.BytesIO()
    _noise("RGB", random.Random(2)).save(buffer, form, exif=block)
    return buffer.getvalue()


def ranged(draw: random.Random) -> Drawn:
    """A TIFF of floats that names their range, or does not, or a wrong one."""
    low, high = draw.choice([(0, 1), (0, 255), (-100, 100), (5, 5), (1, 0), (-math.inf, math.inf), (0, math.nan)])
    values = [draw.uniform(-100, 255) for _ in range(WIDTH * HEIGHT)]
    values = [min(max(value, low), high) if low < high < math.inf else value for value in values]
    inside = draw.random() < 0.5
    values[draw.randrange(len(values))] = values[0] if inside else draw.choice([1e6, -1e6, math.nan, math.inf])
    named = {340: low, 341: high} if draw.random() < 0.8 else {}
    content = tiff((WIDTH, HEIGHT), struct.pack(f"<{len(values)}f", *values), 32, 3, floats=named)
    known = -math.inf < low < high < math.inf and (named or (low, high) == (0, 1))
    return Drawn(content, "tiff", (WIDTH, HEIGHT) if known and inside else "refused")


def keyed(draw: random.Random) -> Drawn:
    """A PNG with one transparent colour, of any depth; one that Pillow loses is refused."""
    depth, kind = draw.choice([(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
    rows = [draw.randbytes(-(-WIDTH * depth * (3 if kind else 1) // 8)) for _ in range(HEIGHT)]
    colour = [draw.randrange(1 << depth) for _ in range(3 if kind else 1)]
    content = png((WIDTH, HEIGHT), depth, kind, rows, [(b"tRNS", struct.pack(f">{len(colour)}H", *colour))])
    return Drawn(content, "png", "refused" if (depth, kind) == (16, 2) else (WIDTH, HEIGHT))


def damaged_exif(draw: random.Random) -> Drawn:
    """With an EXIF block in which bytes are changed, cut off or doubled."""
    form, block = draw.choice(TURNED[:-1]), bytearray(exif(draw.randint(1, 8))[6:])
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(block))
        block[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
    if form == "TIFF":
        image = tiff((WIDTH, HEIGHT), draw.randbytes(WIDTH * HEIGHT), 8, orientation=draw.choice([0, 9, 77, 65535]))
        return Drawn(image, "tiff", (WIDTH, HEIGHT))
    if form == "PNG":
        rows = [draw.randbytes(WIDTH) for _ in range(HEIGHT)]
        around = [[(b"eXIf", bytes(block))], []]
        draw.shuffle(around)
        return Drawn(png((WIDTH, HEIGHT), 8, 0, rows, *around), "png", None)
    return Drawn(with_exif(form, b"Exif\0\0" + bytes(block)), form.lower(), None)


def cut(draw: random.Random) -> Drawn:
    """Cut off anywhere."""
    one = draw.choice(wholes())
    return Drawn(one.content[: draw.randrange(len(one.content))], one.ending, None)


def changed(draw: random.Random) -> Drawn:
    """With a few bits or bytes changed, most of them where it is said how the rest is read."""
    one = draw.choice(wholes())
    content = bytearray(one.content)
    for _ in range(draw.randint(1, 12)):
        place = draw.randrange(min(len(content), draw.choice((40, 200, 10**6))))
        if draw.random() < 0.5:
            content[place] ^= 1 << draw.randrange(8)
        else:
            content[place : place + 1] = draw.randbytes(draw.choice((1, 1, 4)))
    return Drawn(bytes(content), one.ending, None)


def extreme(draw: random.Random) -> Drawn:
    """With numbers near its beginning set to the least and the greatest that they can be."""
    one = draw.choice(wholes())
    content = bytearray(one.content)
    for _ in range(draw.randint(1, 3)):
        place, order = draw.randrange(min(len(content), draw.choice((32, 128)))), draw.choice(("<", ">"))
        number = draw.choice(EXTREMES)
        field = struct.pack(f"{order}H" if number <= 0xFFFF and draw.random() < 0.5 else f"{order}I", number)
        content[place : place + len(field)] = field
    return Drawn(bytes(content), one.ending, None)


def spliced(draw: random.Random) -> Drawn:
    """With parts left out, doubled, or taken from another file."""
    one, other = draw.choice(wholes()), draw.choice(wholes())
    content = bytearray(one.content)
    for _ in range(draw.randint(1, 3)):
        place, length = draw.randrange(len(content) + 1), draw.choice((1, 4, 40, 400))
        source = draw.choice((b"", bytes(content), other.content, draw.randbytes(length)))
        start = draw.randrange(len(source) + 1)
        content[place : place + draw.choice((0, 0, length))] = source[start : start + length]
    return Drawn(bytes(content), one.ending, None)


@cache
def photographs() -> list[Path]:
    """Pictures of cameras and instruments."""
    return sorted(path for path in PHOTOGRAPHS.rglob("*") if path.suffix in (".jpg", ".png", ".webp"))


def photograph(draw: random.Random) -> Drawn:
    """A real file with a few bytes changed, or cut off."""
    path = draw.choice(photographs())
    content = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 6)):
        content[draw.randrange(min(len(content), draw.choice((100, 1000, 10**7))))] = draw.randrange(256)
    end = len(content) if draw.random() < 0.7 else draw.randrange(len(content))
    return Drawn(bytes(content[:end]), path.suffix[1:], None)


def bomb(draw: random.Random) -> Drawn:
    """A few bytes whose header says more pixels than a picture may have."""
    width = draw.choice((1, 50, 9_500, 14_000, 30_000, 65_000))
    height = Image.MAX_IMAGE_PIXELS // width + draw.choice((1, 100, 10**8))
    headers: list[tuple[str, bytes]] = [
        ("png", png((width, height), 8, draw.choice((0, 2, 4, 6)), [b""])),
        ("tiff", tiff((width, height), b"", draw.choice((1, 8, 16)))),
        ("ppm", b"P6 %d %d 255\n" % (width, height)),
        ("bmp", struct.pack("<2sIIIIiiHHIIIIII", b"BM", 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("qoi", struct.pack(">4sIIBB", b"qoif", width, height, 3, 0)),
        ("sun", struct.pack(">8I", 0x59A66A95, width, height, 24, 0, 1, 0, 0)),
    ]
    ending, content = draw.choice(headers)
    return Drawn(content, ending, "refused")


def wrong_ending(draw: random.Random) -> Drawn:
    """Of another format than its name says: the name says nothing."""
    one = draw.choice([one for one in wholes() if one.form in TURNED and one.mode in ("RGB", "L")])
    return Drawn(one.content, draw.choice(wholes()).ending, (WIDTH, HEIGHT))


def empty(draw: random.Random) -> Drawn:
    """No byte, or one repeated."""
    return Drawn(bytes([draw.randrange(256)]) * draw.choice((0, 0, 1, 20)), draw.choice(wholes()).ending, "refused")


def no_picture(draw: random.Random) -> Drawn:
    """Another kind of file."""
    texts = [b"<html><body>404 Not Found</body></html>", b"%PDF-1.7\n", b"PK\3\4" + bytes(60), b'{"error": "denied"}\n']
    texts += [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ]
    return Drawn(draw.choice(texts), draw.choice(wholes()).ending, "refused")


KINDS: dict[str, Callable[[random.Random], Drawn]] = {
    "whole": whole,
    "with an orientation": turned,
    "with a damaged EXIF block": damaged_exif,
    "floats, with a range or without": ranged,
    "with a transparent colour": keyed,
    "cut off": cut,
    "bits and bytes changed": changed,
    "numbers set to extremes": extreme,
    "spliced": spliced,
    "photograph, damaged": photograph,
    "bomb": bomb,
    "wrong ending": wrong_ending,
    "empty": empty,
    "no picture": no_picture,
}


def drawn(seed: int, count: int) -> Iterator[tuple[str, Drawn]]:
    """So many files with the name of their kind, kinds in turn."""
    draw, names = random.Random(seed), list(KINDS)
    for number in range(count):
        name = names[number % len(names)]
        yield name, KINDS[name](draw)
