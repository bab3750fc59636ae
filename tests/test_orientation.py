"""EXIF orientation: a picture is seen, measured, budgeted and counted as a viewer turns it, by the standard's table."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from conftest import pictures, tiny_lens
from drawn_corpus import row, write_rows
from picture_files import exif, png, tiff
from PIL import Image, ImageFile
from transformers.image_utils import load_image

from interventions import count_active
from mmneuron_lens.batching.batches import sized
from mmneuron_lens.batching.frames import token_count, with_frames_that_fit
from mmneuron_lens.corpora import hub
from mmneuron_lens.corpora.folder import image_sizes, read_folder
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.sampling import identification_list
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.wire.images import decode, file_bytes, size

SHOWN = {
    # Where the stored first row and first column belong, as the standard says: (top, left side) and so on.
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
STORED = numpy.asarray(pictures((40, 64))[0].resize((8, 5)).resize((64, 40)))
FORMATS = {
    "PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {"quality": 90},
    "MPO": {"quality": 95},
}  # fmt: skip


def saved(form: str, orientation: int, **changes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(STORED).save(buffer, form, exif=exif(orientation), **FORMATS[form], **changes)
    return buffer.getvalue()


def as_stored(form: str) -> numpy.ndarray:
    """The pixels of the file without EXIF, which a lossy format has changed."""
    buffer = io.BytesIO()
    Image.fromarray(STORED).save(buffer, form, **FORMATS[form])
    return numpy.asarray(Image.open(buffer))


@pytest.fixture
def headers_alone(monkeypatch):
    """Lets no pixel be decoded."""

    def refuse(image, *_):
        raise AssertionError(f"{image.format} is decoded")

    for opened in [ImageFile.ImageFile, *ImageFile.ImageFile.__subclasses__()]:
        if "load" in vars(opened):
            monkeypatch.setattr(opened, "load", refuse)


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_is_turned_as_a_viewer_turns_it(form, orientation, tmp_path):
    data, truth = saved(form, orientation), SHOWN[orientation](as_stored(form))
    path = tmp_path / "phone"
    path.write_bytes(data)
    for given in (path, data, Image.open(path)):
        assert (numpy.asarray(decode(given)) == truth).all()
    # As the stock reader of transformers turns it.
    assert numpy.asarray(load_image(str(path))).tolist() == truth.tolist()
    # Turned once: decoded again, or sent to a server.
    assert (numpy.asarray(decode(decode(path))) == truth).all()
    for given in (path, data, Image.open(path)):
        assert (numpy.asarray(decode(file_bytes(given))) == truth).all()


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("form", FORMATS)
def test_its_size_is_of_the_turned_picture_and_from_the_header(form, orientation, tmp_path, headers_alone):
    path = tmp_path / "phone"
    path.write_bytes(saved(form, orientation))
    assert size(path) == SHOWN[orientation](STORED).shape[1::-1]


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
ROWS = [bytes([0, 50, 100]), bytes([150, 200, 250])]
BLOCK = exif(6)[6:]
RAW_PROFILE = f"\nexif\n{len(exif(6)):8}\n{exif(6).hex()}\n"


def frame(number: int) -> tuple[bytes, bytes]:
    return b"fcTL", struct.pack(">IIIIIHHBB", number, 3, 2, 0, 0, 1, 1, 0, 0)


BEHIND = {
    "png, EXIF before the pixels": png((3, 2), 8, 0, ROWS, [(b"eXIf", BLOCK)]),
    "png, EXIF behind the pixels": png((3, 2), 8, 0, ROWS, after=[(b"eXIf", BLOCK)]),
    "png, XMP before": png((3, 2), 8, 0, ROWS, [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())]),
    "png, XMP behind": png((3, 2), 8, 0, ROWS, after=[(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())]),
    "png, an old program's EXIF": png(
        (3, 2), 8, 0, ROWS,
        [(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE.encode()))],
    ),
    "animated png, EXIF at the end": png(
        (3, 2), 8, 0, ROWS, [(b"acTL", struct.pack(">II", 2, 0)), frame(0)],
        [frame(1), (b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes(8))), (b"eXIf", BLOCK)],
    ),
    "tiff": tiff((3, 2), b"".join(ROWS), 8, orientation=6),
    "tiff of 16 bits": tiff((3, 2), bytes(value for row in ROWS for value in row for _ in range(2)), 16, orientation=6),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND)
def test_wherever_the_orientation_stands(name, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(BEHIND[name])
    assert numpy.asarray(decode(path))[..., 0].tolist() == [[150, 0], [200, 50], [250, 100]]
    assert size(path) == (2, 3)


@pytest.mark.parametrize("name", BEHIND)
def test_wherever_it_stands_only_the_header_is_read(name, tmp_path, headers_alone):
    test = tmp_path / "picture"
    test.write_bytes(BEHIND[name])
    assert size(test) == (2, 3)


def test_a_tiff_with_xmp_alone(tmp_path):
    path = tmp_path / "picture.tif"
    Image.fromarray(STORED).save(path, tiffinfo={700: XMP.encode()})
    assert (numpy.asarray(decode(path)) == SHOWN[6](STORED)).all()
    assert size(path) == (40, 64)


@pytest.mark.parametrize(
    "block", [b"", b"\xff" * 30, b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09\x01\x12", BLOCK[:-6]]
)
def test_a_damaged_block_leaves_a_picture_as_it_is(block, tmp_path):
    path = tmp_path / "picture.jpg"
    for form in ("JPEG", "PNG", "WEBP"):
        Image.fromarray(STORED).save(path, form, exif=b"Exif\0\0" + block, **FORMATS[form])
        assert (numpy.asarray(decode(path)) == as_stored(form)).all()
        assert size(path) == (64, 40)
        with warnings.catch_warnings():
            # Of who opens it.
            warnings.simplefilter("ignore")
            image = Image.open(path)
        assert (numpy.asarray(decode(image)) == as_stored(form)).all()


@pytest.mark.parametrize("value", [0, 9, 200])
def test_an_orientation_that_is_none(value, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(saved("JPEG", value))
    assert (numpy.asarray(decode(path)) == as_stored("JPEG")).all()
    assert size(path) == (64, 40)


def test_a_picture_of_ones_own_is_not_changed():
    image = Image.open(io.BytesIO(saved("PNG", 6)))
    decode(image)
    assert image.size == (64, 40)
    assert image.getexif()[274] == 6


def phone_and_scan(folder: Path, form: str = "PNG") -> tuple[Path, Path]:
    """A photo of 64x30 that EXIF turns upright, and the same picture stored upright."""
    stored = pictures((30, 64), seed=4)[0]
    phone, scan = folder / f"phone.{form.lower()}", folder / "scan.png"
    stored.save(phone, exif=exif(6), **FORMATS[form])
    kept = numpy.asarray(Image.open(phone).convert("RGB"))
    Image.fromarray(SHOWN[6](kept).copy()).save(scan)
    return phone, scan


@pytest.mark.parametrize("architecture", ["llava_next", "instructblip", "llava", "blip2"])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_phone_photo_is_counted_as_the_turned_picture(architecture, form, tmp_path):
    lens = tiny_lens(architecture)
    phone, scan = phone_and_scan(tmp_path, form)
    one, other = lens.encode([phone], ["Is it red?"]), lens.encode([scan], ["Is it red?"])
    assert one.tokens == other.tokens
    for name, value in other.inputs.items():
        assert torch.equal(one.inputs[name], value), name
    packed = lens.pack([([phone], ["Is it red?", "why"])])
    assert torch.equal(packed.inputs["input_ids"], lens.pack([([scan], ["Is it red?", "why"])]).inputs["input_ids"])
    counted = [lens.run(count_active.at("llm.mlp.act"), batch)["count_active", "llm.mlp.act"] for batch in (one, other)]
    assert torch.equal(*counted)
    assert counted[0].sum()


def test_a_phone_photo_is_measured_and_budgeted_as_the_turned_picture(tmp_path):
    lens = tiny_lens("llava_next")
    phone, scan = phone_and_scan(tmp_path)
    samples = [Sample("0", "common", (path,), "Is it red?", ("yes",)) for path in (phone, scan)]
    assert image_sizes(samples[0]) == image_sizes(samples[1]) == [(30, 64)]
    assert [one.pixels for one in sized(samples)] == [(30 * 64, 64)] * 2
    count = token_count(lens)
    # By the model's own encoding, not by any size.
    batch = lens.encode([phone], ["x"])
    assert count.image((30, 64)) == batch.kind[0].count("image") != count.image((64, 30))
    lists = [identification_list([sample], count, domain="common", budget=1) for sample in samples]
    assert lists[0].tokens == lists[1].tokens
    frames = [Sample("0", "auto_driving", (path,) * 14, "Is it red?", ("yes",)) for path in (phone, scan)]
    kept = [with_frames_that_fit(lens, [sample], "identification")[0].images for sample in frames]
    assert len(kept[0]) == len(kept[1]) < 14
    # Of the picture lying on its side another number fits, or this would show nothing.
    pictures((30, 64), seed=4)[0].save(scan)
    assert len(kept[0]) != len(with_frames_that_fit(lens, frames[1:], "identification")[0].images)


def test_a_corpus_of_phone_photos_is_counted_as_its_scans(tmp_path):
    lens = tiny_lens("llava_next")
    phone, scan = phone_and_scan(tmp_path)
    counts = []
    for name in (phone.name, scan.name):
        write_rows(tmp_path, [row("common", 0, image=name), row("common", 0, "why", image=name)])
        samples, problems = read_folder(tmp_path)
        counts.append(count_domain(lens, samples, batch_size=2, problems=problems))
        assert not len(problems)
    for site, tokens in counts[1].tokens.items():
        assert torch.equal(counts[0].tokens[site].sum(0), tokens.sum(0))
        assert torch.equal(counts[0].active[site].sum(0), counts[1].active[site].sum(0))
    traces = [trace_sample(lens, Sample("0", "common", (path,), "why", ("yes",))) for path in (phone, scan)]
    assert torch.equal(traces[0].tokens, traces[1].tokens)
    assert torch.equal(traces[0].pictures[0], traces[1].pictures[0])
    assert traces[0].pictures[0].shape[:2] == (64, 30)


def test_a_server_sees_the_same_pixels(tmp_path):
    lens = tiny_lens("llava_next")
    phone, scan = phone_and_scan(tmp_path, "JPEG")
    graph = count_active.at("llm.mlp.act")
    here = lens.run(graph, lens.encode([scan], ["why"]))["count_active", "llm.mlp.act"]
    for given in (phone, phone.read_bytes(), Image.open(phone)):
        there = lens.run(graph, lens.encode([given], ["why"]), remote="local")["count_active", "llm.mlp.act"]
        assert torch.equal(here, there)


def test_pictures_of_a_data_set_that_are_open_are_written_turned(tmp_path, monkeypatch):
    phone, scan = phone_and_scan(tmp_path)
    opened = [Image.open(phone), Image.new("F", (4, 4), 90.0), Image.open(phone).convert("I;16")]
    shared = {"question": "What?", "answers": ["it"]}
    rows = [shared | {"questionId": number, "image": image} for number, image in enumerate(opened)]
    monkeypatch.setattr(hub, "_rows", lambda *_: iter(rows))
    problems = RecordProblems(tmp_path)
    samples = list(hub.read_hub("document", "some/where", "val", tmp_path / "written", problems))
    assert [size(one.images[0]) for one in samples] == [(30, 64)] * 2
    assert decode(samples[0].images[0]).tobytes() == decode(scan).tobytes()
    assert "record 2 (questionId 1): image cannot be decoded: PIL image of mode F: values from 90 to 90" in str(
        problems
    )
    assert len(problems) == 1
