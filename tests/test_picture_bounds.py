"""What a picture may take: memory, bytes and time are bounded by its header, and a batch by its pictures together."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from damaged_pictures import wholes
from PIL import EpsImagePlugin, Image

from interventions.errors import InvalidValue
from mmneuron_lens.batching import batches
from mmneuron_lens.batching.batches import sized, steps_of, steps_of_whole_images
from mmneuron_lens.corpora import folder
from mmneuron_lens.corpora.folder import image_sizes, open_images
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.wire import colours, images
from mmneuron_lens.wire.images import decode, file_bytes, size

ROOT = Path(__file__).parent.parent

PEAK = """
import sys
from pathlib import Path
from mmneuron_lens.wire.images import decode

def held(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

for file in sys.argv[1:]:
    # Makes what is held now the most that was.
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    picture = decode(file)
    print((held("VmHWM") - before) * 1024 / (picture.width * picture.height))
    del picture
"""
PACKED = {"PNG": {"compress_level": 1}, "TIFF": {"compression": "tiff_lzw"}}
MODES = [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "L"), ("TIFF", "F"), ("TIFF", "CMYK"), ("PNG", "RGB")]


def test_a_picture_is_converted_in_little_more_memory_than_it_takes(tmp_path):
    """Pillow holds 4 bytes a pixel; a picture and what becomes of it are two of them."""
    files = [tmp_path / f"{mode.replace(';', '')}.{form}" for form, mode in MODES]
    for file, (form, mode) in zip(files, MODES, strict=True):
        options = {"transparency": 0} if mode == "P" else {"transparency": (1, 2, 3)} if mode == "RGB" else {}
        Image.new(mode, (4000, 4000)).save(file, form, **options, **PACKED[form])
    ran = [sys.executable, "-c", PEAK, *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(ran, capture_output=True, text=True, check=True, env=environment)
    peaks = dict(zip(MODES, map(float, found.stdout.split()), strict=True))
    assert all(3 < peak < 11 for peak in peaks.values()), peaks


def test_bands_change_no_pixel(monkeypatch):
    whole = {number: _pixels(one.content) for number, one in enumerate(wholes()) if one.form != "ICNS"}
    monkeypatch.setattr(colours, "BAND", 50)
    assert len({content for content in whole.values() if len(content) > 500}) > 40
    assert whole == {number: _pixels(one.content) for number, one in enumerate(wholes()) if one.form != "ICNS"}


def _pixels(content: bytes) -> bytes:
    try:
        return decode(content).tobytes()
    except ValueError as error:
        return str(error).encode()


def test_a_value_out_of_range_is_named_with_the_range_of_the_whole_picture(monkeypatch):
    monkeypatch.setattr(colours, "BAND", 4)
    picture = Image.new("F", (4, 4))
    picture.putpixel((1, 0), -3)
    picture.putpixel((2, 3), 7)
    with pytest.raises(ValueError, match="values from -3 to 7 lie outside 0 to 1"):
        decode(picture)
    picture.putpixel((2, 3), float("nan"))
    with pytest.raises(ValueError, match="lie outside"):
        decode(picture)


@pytest.mark.parametrize("given", ["bytes", "file", "PIL image"])
def test_no_picture_starts_another_program(tmp_path, monkeypatch, given):
    content = next(one.content for one in wholes() if one.form == "EPS")
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was started"))
    picture = {"bytes": content, "file": tmp_path / "a.png", "PIL image": Image.open(io.BytesIO(content))}[given]
    with pytest.raises(ValueError, match="not an image that can be read"):
        decode(picture)
    with pytest.raises(ValueError, match="not an image that can be read"):
        size(tmp_path / "a.png")


def test_a_packed_fits_is_not_unpacked(monkeypatch):
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    0",
        "END",
    ]
    table = ["XTENSION= 'BINTABLE'", "BITPIX  =                    8", "NAXIS   =                    2"]
    table += ["NAXIS1  =                    8", "NAXIS2  =                    1", "ZIMAGE  =                    T"]
    table += ["ZCMPTYPE= 'GZIP_1  '", "ZBITPIX =                    8", "ZNAXIS  =                    2"]
    table += ["ZNAXIS1 =                    4", "ZNAXIS2 =                    4", "END"]
    head = b"".join("".join(f"{card:80}" for card in some).encode().ljust(2880) for some in (cards, table))
    monkeypatch.setattr("gzip.decompress", lambda _: pytest.fail("it is unpacked"))
    with pytest.raises(ValueError, match="a packed FITS, which may hold any number of bytes"):
        decode(head + bytes(5000))


def test_a_file_of_too_many_bytes_is_refused_and_not_read(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(file)
    with file.open("r+b") as stream:
        stream.truncate(200 * 2**30)
    for step in (decode, file_bytes):
        with pytest.raises(ValueError, match=r"a\.png: more than 536870912 bytes; make the picture smaller"):
            step(file)


def test_a_jpeg_of_many_scans_is_refused():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert decode(content[:-2] + scan * 50 + content[-2:]).size == (64, 64)
    with pytest.raises(ValueError, match="a JPEG of more than 100 scans"):
        decode(content[:-2] + scan * 100 + content[-2:])


@pytest.mark.parametrize("head", [b"P2 5000 5000 255\n", b"P3 9000 2000 255\n", b"P5 5000 5000 4095\n"])
def test_what_is_decoded_slowly_has_fewer_pixels(tmp_path, head):
    (tmp_path / "a.ppm").write_bytes(head + b"0 " * 40)
    for step in (decode, size):
        with pytest.raises(ValueError, match="are more than 16777216, in a form that is decoded one pixel at a time"):
            step(tmp_path / "a.ppm")


def test_a_large_block_of_metadata_is_not_searched_for_an_orientation():
    """An EXIF block of a PNG behind its pixels may be of any length; it is no reason to copy it."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2)).save(buffer, "PNG")
    block = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"

    def with_exif(block: bytes) -> bytes:
        chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
        return buffer.getvalue()[:-12] + chunk + buffer.getvalue()[-12:]

    assert decode(with_exif(block)).size == (2, 4)
    assert decode(with_exif(block + bytes(images.NOTED))).size == (4, 2)


RAISED = [
    error("said\nmore")
    for error in (
        AttributeError, OverflowError, struct.error, SyntaxError, KeyError, RecursionError, zlib.error, EOFError,
        IndexError, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning, UserWarning, OSError,
    )
]  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["open", "load", "convert", "size"])
def test_whatever_pillow_raises_is_that_pictures(tmp_path, monkeypatch, error, step):
    def raises(*_, **__):
        raise error

    Image.new("LA", (4, 4)).save(tmp_path / "a.png")
    place = {"open": Image, "size": Image, "load": Image.Image, "convert": Image.Image}[step]
    monkeypatch.setattr(place, "open" if step == "size" else step, raises)
    if step == "load":
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", raises)
    problems = RecordProblems(tmp_path)
    sample = Sample("1", "common", (tmp_path / "a.png",), "What?", ("it",))
    assert (image_sizes if step == "size" else open_images)(sample, problems) is None
    (named,) = problems
    assert "a.png: " in named.says
    assert str(named).isprintable()


def test_only_what_a_picture_raises_is_its_own(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(tmp_path / "a.png")


def _samples(place: Path, sides: list[int], questions: int = 1) -> list[Sample]:
    found = []
    for number, side in enumerate(sides):
        Image.new("1", (side, side), number % 2).save(place / f"{number}.png")
        asked = [
            Sample(f"{number}-{one}", "common", (place / f"{number}.png",), "What?", ()) for one in range(questions)
        ]
        found += asked
    return found


def test_a_batch_ends_where_its_pictures_would_be_too_many_pixels(tmp_path, monkeypatch):
    samples = sized(_samples(tmp_path, [30] * 10 + [10] * 10))
    whole = steps_of(samples, 8, buckets=False)
    assert [len(step.samples) for step in whole] == [8, 8, 4]
    monkeypatch.setattr(batches, "TOGETHER", 2500)
    cut = steps_of(samples, 8, buckets=False)
    areas = {one.sample.id: one.pixels[0] for one in samples}
    held = [sum(areas[sample.id] for sample in step.samples) for step in cut]
    assert max(held) <= 2500
    # One more would be too many.
    assert all(now + areas[step.samples[0].id] > 2500 or size == 8 for now, step, size in zip(
        held, cut[1:], [len(step.samples) for step in cut], strict=False
    ))  # fmt: skip
    assert [sample.id for step in cut for sample in step.samples] == [one.id for step in whole for one in step.samples]
    monkeypatch.setattr(batches, "TOGETHER", 100)
    assert {len(step.samples) for step in steps_of(samples, 8, buckets=False)} == {1}


def test_questions_of_one_picture_hold_it_once(tmp_path, monkeypatch):
    samples = sized(_samples(tmp_path, [30], questions=6))
    monkeypatch.setattr(batches, "TOGETHER", 1000)
    assert [len(step.samples) for step in steps_of_whole_images(samples, 8, 8, rows=True)] == [6]
    assert [len(step.samples) for step in steps_of(samples, 8)] == [1] * 6


def test_many_bytes_weigh_as_many_pixels(tmp_path, monkeypatch):
    samples = _samples(tmp_path, [10] * 4)
    for sample in samples:
        with sample.images[0].open("ab") as file:
            file.write(bytes(5000))
    monkeypatch.setattr(batches, "TOGETHER", 11_000)
    assert [len(step.samples) for step in steps_of(sized(samples), 8, buckets=False)] == [2, 2]


def test_a_question_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    one, two = _samples(tmp_path, [30, 40])
    both = Sample("both", "common", one.images + two.images, "What?", ())
    monkeypatch.setattr(folder, "TOGETHER", 2499)
    assert open_images(two) is not None
    for step in (open_images, image_sizes):
        with pytest.raises(InvalidValue, match="2 images of 2500 pixels, where 2499 are held at one time"):
            step(both)
    monkeypatch.setattr(folder, "TOGETHER", 2500)
    assert len(open_images(both) or []) == 2


def test_the_largest_picture_fits_into_a_batch():
    assert (Image.MAX_IMAGE_PIXELS or 0) <= folder.TOGETHER
