"""Videos are refused by name, in a file, in a row and in a text; pictures of several frames are read as before."""

from __future__ import annotations

import io
from functools import cache

import newer_models
import pytest
from conftest import pictures, tiny_lens
from drawn_corpus import row, write_images, write_rows
from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.corpora.folder import image_sizes, read_folder
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.wire.images import decode, file_bytes, size
from mmneuron_lens.wire.videos import ENDINGS

# transformers' own, see test_newer_architectures.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

STARTS = {
    "clip.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "clip.m4v": b"\0\0\0\x20ftypM4V \0\0\0\1M4V mp42",
    "clip.mov": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
    "old.mov": b"\0\0\0\x08mdat\0\0\0\0\0\0\0\0",
    "clip.avi": b"RIFF\x10\0\0\0AVI LIST\0\0\0\0",
    "clip.webm": b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81",
    "clip.mpg": b"\0\0\1\xba\x44\0\4\0\4\1\0\0\0\0\0\0",
    "clip.flv": b"FLV\1\5\0\0\0\x09\0\0\0\0\0\0\0",
    "clip.ogv": b"OggS\0\2\0\0\0\0\0\0\0\0\0\0",
    "clip.wmv": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
}
"""How files of these kinds begin."""

VIDEO_TOKENS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|video_pad|>"),
    **dict.fromkeys(("glm4v", "glm46v"), "<|video|>"),
    **dict.fromkeys(("internvl", "llava_onevision", "llava_next_video", "smolvlm"), "<video>"),
}


@cache
def lens_of(name: str) -> Lens:
    return Lens.wrap(*getattr(newer_models, name)())


@pytest.mark.parametrize("name", STARTS)
def test_a_video_is_refused_whatever_it_is_called(tmp_path, name):
    for called in (name, name.rpartition(".")[0] + ".png", "no_ending"):
        path = tmp_path / called
        path.write_bytes(STARTS[name] + bytes(64))
        says = rf"{called} is a video; mmneuron reads pictures"
        with pytest.raises(ValueError, match=says):
            decode(path)
        with pytest.raises(ValueError, match=says):
            size(path)
        with pytest.raises(InvalidValue, match=says) as error:
            tiny_lens("llava_next").encode([path], ["what?"])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"80 bytes is a video|8\d bytes is a video"):
        decode(STARTS[name] + bytes(64))


def test_a_file_of_a_videos_name_is_read_only_where_it_is_a_picture(tmp_path):
    (picture,) = pictures((32, 32))
    for ending in ENDINGS:
        path = tmp_path / f"x{ending.upper()}"
        path.write_bytes(b"nothing that is known")
        with pytest.raises(ValueError, match="is a video"):
            decode(path)
        picture.save(path, format="PNG")
        assert decode(path).tobytes() == picture.tobytes()
        assert size(path) == picture.size


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_a_picture_of_several_frames_the_first_is_read(tmp_path, kind):
    first, *others = pictures((32, 32), (32, 32), (32, 32))
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=others)
    path = tmp_path / f"frames.{kind.lower()}"
    path.write_bytes(buffer.getvalue())
    expected = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    assert decode(path).tobytes() == decode(file_bytes(path)).tobytes() == expected.tobytes()


def test_rows_of_videos_are_named(tmp_path):
    write_images(tmp_path, "common", 2)
    (tmp_path / "images" / "clip.mp4").write_bytes(STARTS["clip.mp4"])
    rows = [row("common", 0), row("common", 1), row("common", 0, image="images/clip.mp4")]
    rows += [{**row("common", 0), "image": None, "video": "images/clip.mp4"}]
    del rows[-1]["image"]
    samples, problems = read_folder(write_rows(tmp_path, rows))
    assert [one.says for one in problems] == [
        "video 'images/clip.mp4' is not read; save the frames that are asked about as images."
    ]
    assert image_sizes(samples[2], problems) is None
    counts = count_domain(tiny_lens("llava_next"), samples, problems=problems)
    assert counts.samples == 2
    assert "clip.mp4 is a video; mmneuron reads pictures" in str(problems)


@pytest.mark.parametrize("name", VIDEO_TOKENS)
def test_a_placeholder_of_a_video_is_refused_in_a_text(name):
    lens, token = lens_of(name), VIDEO_TOKENS[name]
    (image,) = pictures((32, 32))
    for asked in (
        lambda: lens.encode([image, image], ["fine", f"what happens in {token}?"]),
        lambda: lens.encode(None, ["fine", token]),
        lambda: lens.pack([([image], ["fine", token])]),
    ):
        with pytest.raises(InvalidValue, match=r"texts\[1\]: .*where a video would stand; mmneuron reads pictures"):
            asked()


def test_a_model_without_videos_reads_the_word():
    lens = tiny_lens("llava_next")
    (image,) = pictures((32, 32))
    assert lens.encode([image], ["is <video> a word?"]).rows == 1


@pytest.mark.parametrize("name", VIDEO_TOKENS)
def test_a_question_with_a_videos_placeholder_is_left_out(tmp_path, name):
    write_images(tmp_path, "common", 2)
    token = VIDEO_TOKENS[name]
    samples, problems = read_folder(write_rows(tmp_path, [row("common", 0), row("common", 1, f"what of {token}?")]))
    counts = count_domain(lens_of(name), samples, problems=problems)
    assert counts.samples == 1
    assert f"holds {token!r}, which this model's tokenizer reads as a control token" in str(problems)
