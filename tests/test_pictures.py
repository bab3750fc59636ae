"""Pictures: the colours of every mode, format and array against values worked out by hand."""

from __future__ import annotations

import colorsys
import io
import struct
from fractions import Fraction

import numpy
import pytest
import torch
from conftest import tiny_lens
from picture_files import png, tiff
from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens.wire.images import decode, file_bytes, size

COLOURS = [(200, 30, 60), (10, 180, 90), (40, 70, 220), (255, 128, 0)]
"""No channel of one is that of another."""
FLAT = bytes(value for colour in COLOURS for value in colour)
ALPHAS = [255, 0, 128, 51]
GREYS = [0, 51, 204, 255]


def on_white(value: int, alpha: int) -> int:
    """Alpha compositing, by its formula."""
    return round(Fraction(value * alpha, 255) + 255 - alpha)


SEEN = [tuple(on_white(value, alpha) for value in colour) for colour, alpha in zip(COLOURS, ALPHAS, strict=True)]
GREYS_SEEN = [on_white(value, alpha) for value, alpha in zip(GREYS, ALPHAS, strict=True)]
PALETTE = [value for colour in COLOURS for value in colour]


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value,) * 3 for value in values]


def interleaved(*channels: list[int]) -> bytes:
    return bytes(value for pixel in zip(*channels, strict=True) for value in pixel)


def with_alpha(premultiplied: bool) -> bytes:
    given = zip(COLOURS, ALPHAS, strict=True)
    return b"".join(
        bytes(round(value * alpha / 255) if premultiplied else value for value in colour) + bytes([alpha])
        for colour, alpha in given
    )


def by_inks(cyan: int, magenta: int, yellow: int, black: int) -> tuple[int, ...]:
    return tuple(round((255 - ink) * (255 - black) / 255) for ink in (cyan, magenta, yellow))


def by_luma(y: int, cb: int, cr: int) -> tuple[int, ...]:
    """JFIF's equations."""
    values = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    return tuple(round(min(255, max(0, value))) for value in values)


def by_hue(hue: int, saturation: int, value: int) -> tuple[int, ...]:
    return tuple(round(part * 255) for part in colorsys.hsv_to_rgb(hue / 255, saturation / 255, value / 255))


INKS = [(0, 0, 0, 0), (255, 0, 100, 0), (20, 200, 0, 51), (0, 0, 0, 255)]
LUMA = [(128, 128, 128), (81, 90, 240), (145, 54, 34), (41, 240, 110)]
HUES = [(0, 255, 200), (85, 200, 255), (170, 255, 100), (30, 0, 77)]
DEEP = [0, 128, 129, 65535]
"""Of 16 bits: 128/257 is nearest 0, 129/257 is nearest 1."""
DEEP_SEEN = grey(0, 0, 1, 255)

MODES = {
    "1": (b"\xa0", grey(255, 0, 255, 0), 0),
    "L": (bytes(GREYS), grey(*GREYS), 0),
    "P": (bytes([3, 2, 1, 0]), COLOURS[::-1], 0),
    "RGB": (FLAT, COLOURS, 0),
    "RGBX": (interleaved(*(list(FLAT[place::3]) for place in range(3)), [9, 0, 255, 7]), COLOURS, 0),
    "RGBA": (with_alpha(False), SEEN, 1),
    "RGBa": (with_alpha(True), SEEN, 2),
    "LA": (interleaved(GREYS, ALPHAS), grey(*GREYS_SEEN), 1),
    "La": (interleaved([0, 0, 102, 51], ALPHAS), grey(0, 255, 229, 255), 1),
    "PA": (interleaved([0, 1, 2, 3], ALPHAS), SEEN, 1),
    "CMYK": (bytes(ink for inks in INKS for ink in inks), [by_inks(*inks) for inks in INKS], 1),
    "YCbCr": (bytes(value for one in LUMA for value in one), [by_luma(*one) for one in LUMA], 2),
    "HSV": (bytes(value for one in HUES for value in one), [by_hue(*one) for one in HUES], 2),
    # CIE L*a*b* under D50, a and b with a sign: white, black, the red of sRGB, and grey.
    "LAB": (
        struct.pack("Bbb" * 4, 255, 0, 0, 0, 0, 0, 138, 81, 70, 137, 0, 0),
        [(255, 255, 255), (0, 0, 0), (255, 0, 0), (128, 128, 128)],
        6,
    ),
    "I;16": (struct.pack("<4H", *DEEP), DEEP_SEEN, 0),
    "I;16L": (struct.pack("<4H", *DEEP), DEEP_SEEN, 0),
    "I;16B": (struct.pack(">4H", *DEEP), DEEP_SEEN, 0),
    "I;16N": (struct.pack("=4H", *DEEP), DEEP_SEEN, 0),
    "F": (struct.pack("=4f", 0, 0.25, 0.7, 1), grey(0, 64, 178, 255), 0),
}
"""By mode: four pixels as Pillow holds them, what is seen, and how far off its arithmetic may be."""


def pixels(picture: Image.Image) -> list[tuple[int, ...]]:
    assert picture.mode == "RGB"
    return [tuple(pixel) for pixel in numpy.asarray(picture).reshape(-1, 3).tolist()]


def close(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], tolerance: int) -> None:
    assert len(found) == len(expected)
    assert numpy.abs(numpy.array(found) - numpy.array(expected)).max() <= tolerance, (found, expected)


def made(mode: str) -> Image.Image:
    image = Image.frombytes(mode, (4, 1), MODES[mode][0])
    if mode in ("P", "PA"):
        image.putpalette(PALETTE)
    return image


def test_every_mode_of_pillow_has_its_pixels_here():
    assert set(Image.MODES) <= {*MODES, "I"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_seen_in_its_colours(mode):
    _, expected, tolerance = MODES[mode]
    close(pixels(decode(made(mode))), expected, tolerance)
    # Laid out again, and sent: the same picture.
    assert pixels(decode(decode(made(mode)))) == pixels(decode(made(mode)))
    assert pixels(decode(file_bytes(made(mode)))) == pixels(decode(made(mode)))


@pytest.mark.parametrize("mode", MODES)
def test_a_processor_is_given_these_colours(lens, mode):
    batch = lens.encode([made(mode)], ["why"])
    _, expected, tolerance = MODES[mode]
    truth = Image.fromarray(numpy.array([expected], dtype=numpy.uint8))
    stock = lens.processor.image_processor(truth, return_tensors="pt")["pixel_values"]
    # A level is 1/255 of a channel, divided by a deviation of 0.26 or more.
    torch.testing.assert_close(batch.inputs["pixel_values"], stock, rtol=0, atol=1e-6 + (tolerance + 1) / 255 / 0.26)


LOSSLESS = {
    **{form: {} for form in ("PNG", "TIFF", "BMP", "TGA", "PPM", "PCX", "SGI", "QOI", "DDS", "DIB", "GIF")},
    "WEBP": {"lossless": True},
    "JPEG2000": {"irreversible": False},
}
LOSSY = {"JPEG": {"quality": 95}, "MPO": {"quality": 95}, "WEBP": {"quality": 95}, "AVIF": {"quality": 95}}


def blocks(colours: list[tuple[int, ...]]) -> Image.Image:
    """A picture of 64x16 pixels, in four flat blocks."""
    row = numpy.array(colours, dtype=numpy.uint8)[None]
    return Image.fromarray(row.repeat(16, 1).repeat(16, 0))


def in_the_blocks(picture: Image.Image) -> list[tuple[int, ...]]:
    assert picture.size == (64, 16)
    return [picture.getpixel((x, 8)) for x in (8, 24, 40, 56)]


@pytest.mark.parametrize("form", LOSSLESS)
def test_every_lossless_format_is_seen_in_its_colours(form, tmp_path):
    path = tmp_path / "picture"
    blocks(COLOURS).save(path, form, **LOSSLESS[form])
    assert in_the_blocks(decode(path)) == COLOURS
    assert size(path) == (64, 16)


@pytest.mark.parametrize("form", LOSSY)
def test_every_lossy_format_is_seen_in_its_colours(form, tmp_path):
    path = tmp_path / "picture"
    blocks(COLOURS).save(path, form, **LOSSY[form])
    close(in_the_blocks(decode(path)), COLOURS, 6)
    assert size(path) == (64, 16)


def test_cmyk_of_a_jpeg_and_a_tiff():
    inks = numpy.array(INKS, dtype=numpy.uint8)[None].repeat(16, 1).repeat(16, 0)
    for form in ("JPEG", "TIFF"):
        buffer = io.BytesIO()
        Image.frombytes("CMYK", (64, 16), inks.tobytes()).save(buffer, form, quality=95)
        close(in_the_blocks(decode(buffer.getvalue())), [by_inks(*one) for one in INKS], 8)


def rows_of(*values: int) -> list[bytes]:
    return [bytes(values)]


KEY = [(b"tRNS", struct.pack(">H", 2))]
PNGS = {
    "1 bit": (png((4, 1), 1, 0, rows_of(0b01010000)), grey(0, 255, 0, 255)),
    "2 bits": (png((4, 1), 2, 0, rows_of(0b00011011)), grey(0, 85, 170, 255)),
    "4 bits": (png((2, 1), 4, 0, rows_of(0x1F)), grey(17, 255)),
    "16 bits": (png((3, 1), 16, 0, [struct.pack(">3H", 128, 129, 65535)]), grey(0, 1, 255)),
    "16 bits, RGB": (png((1, 1), 16, 2, [struct.pack(">3H", 0, 257 * 90, 65535)]), [(0, 90, 255)]),
    "16 bits, grey and alpha": (png((1, 1), 16, 4, [struct.pack(">2H", 257 * 90, 0)]), grey(255)),
    "transparent 1 bit": (png((4, 1), 1, 0, rows_of(0b01010000), [(b"tRNS", b"\0\0")]), grey(255, 255, 255, 255)),
    "transparent 2 bits": (png((4, 1), 2, 0, rows_of(0b00011011), KEY), grey(0, 85, 255, 255)),
    "transparent 4 bits": (png((2, 1), 4, 0, rows_of(0x12), KEY), grey(17, 255)),
    "transparent 8 bits": (png((3, 1), 8, 0, rows_of(1, 2, 34), KEY), grey(1, 255, 34)),
    "transparent 16 bits": (png((3, 1), 16, 0, [struct.pack(">3H", 2, 3, 257)], KEY), grey(255, 0, 1)),
    "transparent RGB": (
        png((2, 1), 8, 2, rows_of(200, 30, 60, 200, 30, 61), [(b"tRNS", struct.pack(">3H", 200, 30, 60))]),
        [(255, 255, 255), (200, 30, 61)],
    ),
    "palette": (png((4, 1), 2, 3, rows_of(0b00011011), [(b"PLTE", bytes(PALETTE))]), COLOURS),
    "one transparent of a palette": (
        png((4, 1), 2, 3, rows_of(0b00011011), [(b"PLTE", bytes(PALETTE)), (b"tRNS", b"\xff\0")]),
        [COLOURS[0], (255, 255, 255), *COLOURS[2:]],
    ),
    "transparencies of a palette": (
        png((4, 1), 8, 3, rows_of(0, 1, 2, 3), [(b"PLTE", bytes(PALETTE)), (b"tRNS", bytes(ALPHAS))]), SEEN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PNGS)
def test_every_depth_of_png(name):
    data, expected = PNGS[name]
    close(pixels(decode(data)), expected, 1 if name == "transparencies of a palette" else 0)
    close(pixels(decode(Image.open(io.BytesIO(data)))), expected, 1 if "transparencies" in name else 0)


RANGED = {340: 0.0, 341: 200.0}
TIFFS = {
    "1 bit": (tiff((8, 1), b"\x55", 1), grey(0, 255, 0, 255, 0, 255, 0, 255)),
    "white is 0, 8 bits": (tiff((3, 1), bytes([0, 51, 255]), 8, photometric=0), grey(255, 204, 0)),
    "12 bits": (tiff((2, 1), bytes([0xFF, 0xF8, 0x00]), 12), grey(255, 128)),
    "16 bits": (tiff((3, 1), struct.pack("<3H", 128, 129, 65535), 16), grey(0, 1, 255)),
    "white is 0, 16 bits": (tiff((2, 1), struct.pack("<2H", 0, 51 * 257), 16, photometric=0), grey(255, 204)),
    "floats to 1": (tiff((3, 1), struct.pack("<3f", 0, 0.25, 1), 32, 3), grey(0, 64, 255)),
    "white is 0, floats": (tiff((3, 1), struct.pack("<3f", 0, 0.2, 1), 32, 3, 0), grey(255, 204, 0)),
    "floats of a named range": (tiff((3, 1), struct.pack("<3f", 0, 40, 200), 32, 3, floats=RANGED), grey(0, 51, 255)),
    "32 bits of a named range": (tiff((3, 1), struct.pack("<3I", 0, 40, 200), 32, 1, floats=RANGED), grey(0, 51, 255)),
    "signed 16 bits of a named range": (
        tiff((3, 1), struct.pack("<3h", -100, -60, 100), 16, 2, floats={340: -100.0, 341: 100.0}), grey(0, 51, 255),
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", [1, 2, 7])
@pytest.mark.parametrize("tag", RANGED)
def test_a_range_that_is_no_numbers_is_none(tag, code):
    # Bytes, text, or anything.
    whole = tiff((3, 1), struct.pack("<3f", 0, 40, 200), 32, 3, floats=RANGED)
    with pytest.raises(ValueError, match="values from 0 to 200 lie outside 0 to 1"):
        decode(whole.replace(struct.pack("<HH", tag, 11), struct.pack("<HH", tag, code)))


def test_a_range_of_one_value_is_none():
    with pytest.raises(ValueError, match="values from 5 to 5 lie outside 0 to 1"):
        decode(tiff((1, 1), struct.pack("<f", 5), 32, 3, floats={340: 5.0, 341: 5.0}))


@pytest.mark.parametrize("name", TIFFS)
def test_every_depth_of_tiff(name):
    data, expected = TIFFS[name]
    assert pixels(decode(data)) == expected
    assert pixels(decode(Image.open(io.BytesIO(data)))) == expected


def test_pgm_of_more_than_8_bits():
    assert pixels(decode(b"P5 3 1 1000\n" + struct.pack(">3H", 0, 200, 1000))) == grey(0, 51, 255)
    assert pixels(decode(b"P2 3 1 65535\n128 129 65535\n")) == grey(0, 1, 255)
    assert pixels(decode(b"P6 1 1 1000\n" + struct.pack(">3H", 0, 200, 1000))) == [(0, 51, 255)]


def test_all_values_of_16_bits_are_rounded():
    values = numpy.arange(65536, dtype=numpy.uint16).reshape(256, 256)
    truth = [(2 * value + 257) // 514 for value in range(65536)]
    for given in (values, values.astype(">u2"), Image.fromarray(values)):
        assert numpy.asarray(decode(given))[..., 1].ravel().tolist() == truth


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble"])
def test_floats_are_rounded(dtype):
    values = numpy.arange(256).reshape(16, 16, 1) / 255
    found = numpy.asarray(decode((values + numpy.array([0, 0.0008, -0.0008])).clip(0, 1).astype(dtype)))
    assert (found == numpy.arange(256).reshape(16, 16, 1)).all()


def test_arrays_of_every_shape():
    colours = numpy.array(COLOURS, dtype=numpy.uint8)[None]
    alphas = numpy.array(ALPHAS, dtype=numpy.uint8)[None, :, None]
    assert pixels(decode(colours)) == COLOURS
    assert pixels(decode(torch.from_numpy(colours))) == COLOURS
    assert pixels(decode(colours[..., ::-1])) == [colour[::-1] for colour in COLOURS]
    close(pixels(decode(numpy.concatenate([colours, alphas], -1))), SEEN, 1)
    close(pixels(decode(numpy.concatenate([colours, alphas], -1) / 255)), SEEN, 1)
    assert pixels(decode(colours.astype(numpy.uint16) * 257)) == COLOURS
    assert pixels(decode(numpy.array([[False, True]]))) == grey(0, 255)
    assert pixels(decode(colours[..., :1])) == pixels(decode(colours[..., 0])) == grey(200, 10, 40, 255)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (numpy.array([[0.0, 255.0]]), r"^Image array: values from 0 to 255 lie outside 0 to 1; give 8-bit values, or"),
        (numpy.array([[-0.1, 1.0]], dtype=numpy.float16), r"values from -0\.09\d* to 1 lie outside 0 to 1"),
        (numpy.array([[0, numpy.nan]]), "values from nan to nan lie outside"),
        (numpy.array([[0, numpy.inf]]), "values from 0 to inf lie outside"),
        *(
            (numpy.zeros((2, 2), dtype=dtype), rf"values of {dtype} have no known range; \.astype\(numpy\.uint8\)")
            for dtype in ("int8", "int16", "int32", "int64", "uint32", "uint64", "complex64", "object", "datetime64")
        ),
        (torch.zeros(3, 40, 50), r"^Image array: \[3, 40, 50\] has its channels first; give \[height, width, ch"),
        (numpy.zeros((1, 28, 28), dtype=numpy.uint8), "has its channels first"),
        (numpy.zeros((4, 5, 2), dtype=numpy.uint8), r"\[height, width, 1, 3 or 4\], not \[4, 5, 2\]"),
        (numpy.zeros((1, 4, 5, 3), dtype=numpy.uint8), r"not \[1, 4, 5, 3\]"),
        (numpy.zeros(5), r"not \[5\]"),
        (numpy.zeros((0, 5, 3)), "holds no pixel"),
        (numpy.ma.masked_equal([[0.0, 1.0]], 1.0), "masked"),
        (torch.zeros(4, 4, 3, dtype=torch.bfloat16), "numpy cannot read it"),
        (torch.zeros(4, 4, 3, requires_grad=True), "numpy cannot read it"),
        (Image.new("F", (2, 2), 255.0), "^PIL image of mode F: values from 255 to 255 lie outside 0 to 1"),
        (Image.new("I", (2, 2), 1), "mode I: integers of more than 8 bits .* no known range"),
        (Image.new("RGB", (0, 5)), "0x5 pixels"),
        (tiff((2, 1), struct.pack("<2f", 0, 255), 32, 3), "values from 0 to 255 lie outside 0 to 1"),
        (tiff((2, 1), struct.pack("<2f", 0, 201), 32, 3, floats=RANGED), "values from 0 to 201 lie outside 0 to 200"),
        (tiff((2, 1), struct.pack("<2i", 0, 255), 32, 2), "no known range"),
        (tiff((2, 1), struct.pack("<2h", 0, 255), 16, 2), "no known range"),
        (tiff((2, 1), b"\x01\xff", 8, 2), "8-bit values with a sign have no known range"),
        (tiff((2, 1), struct.pack("<2I", 0, 2**31), 32), "no known range"),
        (b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0, 20), "values from 0 to 20 lie outside 0 to 1"),
        (
            png((1, 1), 16, 2, [bytes(6)], [(b"tRNS", bytes(6))]),
            "transparent colour .* is none of its 8-bit colours; give it a channel",
        ),
        (png((1, 1), 8, 3, [b"\0"]), "palette is missing"),
        (b"", "0 bytes: not an image that can be read"),
    ],
)
def test_what_has_no_known_range_is_refused_in_one_line(given, says):
    with pytest.raises(ValueError, match=says) as caught:
        decode(given)
    assert str(caught.value).isprintable()
    with pytest.raises(InvalidValue, match=says):
        tiny_lens("llava_next").encode([given], ["why"])


def test_fits_says_nothing_of_its_range():
    cards = ("SIMPLE  =                    T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 2", "NAXIS2  = 1", "END")
    head = "".join(f"{card:80}" for card in cards)
    with pytest.raises(ValueError, match="no known range"):
        decode(f"{head:2880}".encode() + struct.pack(">2h", -1, 1) + bytes(2876))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_seen(form):
    frames = [Image.new("RGB", (8, 6), colour) for colour in COLOURS]
    buffer = io.BytesIO()
    lossless = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], **lossless)
    assert set(pixels(decode(buffer.getvalue()))) == {COLOURS[0]}
    image = Image.open(buffer)
    assert image.n_frames == 4
    assert set(pixels(decode(image))) == {COLOURS[0]}
    # A PIL image is seen as it stands.
    image.seek(2)
    assert set(pixels(decode(image))) == {COLOURS[2]}
    assert set(pixels(decode(file_bytes(image)))) == {COLOURS[2]}


def test_transparency_of_a_gif():
    image = Image.new("P", (8, 6), 1)
    image.putpalette(PALETTE)
    image.putpixel((0, 0), 2)
    buffer = io.BytesIO()
    image.save(buffer, "GIF", transparency=1)
    assert pixels(decode(buffer.getvalue()))[:2] == [COLOURS[2], (255, 255, 255)]


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


@pytest.mark.parametrize("side", [32, 44, 46, 10_000])
@pytest.mark.parametrize("form", ["png", "tiff", "pgm", "bmp", "gif"])
def test_a_bomb_is_refused_by_its_header(form, side, tmp_path, limit):
    # Above the limit Pillow warns, above its double it raises.
    data = {
        "png": png((side, side), 8, 0, [b""]),
        "tiff": tiff((side, side), b"", 8),
        "pgm": b"P5 %d %d 255\n" % (side, side),
        "bmp": struct.pack("<2sIIIIiiHHIIIIII", b"BM", 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        "gif": struct.pack("<6sHHBBBBHHHHB", b"GIF89a", side, side, 0, 0, 0, 44, 0, 0, side, side, 0) + b"\x02\0;",
    }[form]
    path = tmp_path / "bomb"
    path.write_bytes(data)
    for refused in (decode, size):
        with pytest.raises(ValueError, match=r"bomb: .*pixels are more than 1000, PIL\.Image\.MAX_IMAGE_PIXELS; make"):
            refused(path)


def test_a_large_picture_is_refused_whatever_it_comes_as(limit):
    for given in (Image.new("RGB", (40, 26)), numpy.zeros((40, 26), dtype=numpy.uint8)):
        with pytest.raises(ValueError, match=r"pixels are more than 1000"):
            decode(given)
    assert decode(Image.new("RGB", (40, 25))).size == (40, 25)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    lens = tiny_lens("llava_next")
    for path, says in (
        (tmp_path, "not an image that can be read"),
        (tmp_path / ("x" * 300), "not an image that can be read"),
        (tmp_path / "a\0.png", "no such image file"),
    ):
        with pytest.raises(InvalidValue, match=says):
            lens.encode([path], ["why"])
        with pytest.raises(ValueError, match=says):
            size(path)
        with pytest.raises(ValueError, match=says):
            file_bytes(path)


def test_rows_that_a_tiff_lacks_are_no_black_pixels():
    whole = tiff((4, 8), bytes(range(32)), 8)
    assert len(pixels(decode(whole))) == 32
    # One strip of 4 of the 8 rows.
    with pytest.raises(ValueError, match="pixels are missing at its end"):
        decode(whole.replace(struct.pack("<HHII", 278, 4, 1, 8), struct.pack("<HHII", 278, 4, 1, 4)))


def icon(kind: bytes, side: int) -> bytes:
    """An icon of a Mac whose size is said by its kind, and by the PNG inside."""
    inner = png((side, side), 8, 0, [bytes(side)] * side)
    block = kind + struct.pack(">I", len(inner) + 8) + inner
    return b"icns" + struct.pack(">I", len(block) + 8) + block


def test_a_header_that_differs_from_the_pixels_is_refused(tmp_path):
    path = tmp_path / "icon"
    path.write_bytes(icon(b"ic07", 16))
    assert size(path) == (128, 128)
    with pytest.raises(ValueError, match=r"icon: .*its header says 128x128 pixels, its pixels are 16x16"):
        decode(path)


@pytest.mark.parametrize("side", [40, 50])
def test_a_bomb_inside_another_file_is_refused(side, limit):
    # 16x16 outside; inside 1600 pixels, of which Pillow warns, or 2500, for which it raises.
    with pytest.raises(ValueError, match="pixels are more than 1000"):
        decode(icon(b"icp4", side))


def test_the_size_of_a_file_shorter_than_its_format_asks(tmp_path):
    # A PCX of 8 bits looks for a palette 769 bytes before its end; of a file on disk Pillow cannot.
    path = tmp_path / "short.pcx"
    Image.new("L", (4, 3), 90).save(path)
    path.write_bytes(path.read_bytes()[:-769])
    assert path.stat().st_size < 769
    assert size(path) == decode(path).size == (4, 3)
