"""A sample's digest changes with each of its fields and with the bytes of each of its images, and with nothing else."""

from __future__ import annotations

import hashlib
import os
from dataclasses import fields, replace
from pathlib import Path
from random import Random

import pytest

from mmneuron_lens.corpora import content
from mmneuron_lens.corpora.content import MISSING, content_digest, image_digest, sample_digest
from mmneuron_lens.corpora.sample import Sample

LONG_AGO = 1_600_000_000 * 10**9


@pytest.fixture
def sample(tmp_path) -> Sample:
    files = tuple(tmp_path / f"{name}.png" for name in "abc")
    for file in files:
        file.write_bytes(file.name.encode())
    return Sample("7", "medical", files, "Which?", ("A", "B"), ("heart", "lung"), "organ")


def aged(file: Path, seconds: int = 0) -> Path:
    os.utime(file, ns=(LONG_AGO, LONG_AGO + seconds * 10**9))
    return file


def test_an_images_digest_is_the_sha256_of_its_bytes(sample):
    for file in sample.images:
        assert image_digest(file) == image_digest(str(file)) == hashlib.sha256(file.read_bytes()).hexdigest()
        assert image_digest(aged(file)) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_that_did_not_change_is_read_once(sample, monkeypatch):
    read, sha256 = [], content._sha256
    monkeypatch.setattr(content, "_sha256", lambda path: read.append(path) or sha256(path))
    file = aged(sample.images[0])
    first = image_digest(file)
    assert image_digest(file) == first
    assert read == [str(file)]
    file.write_bytes(b"A.png")
    assert image_digest(aged(file, seconds=1)) != first
    assert len(read) == 2


def test_a_file_that_was_written_just_now_is_read_again_though_its_time_is_the_same(sample):
    file = sample.images[0]
    now = file.stat().st_mtime_ns
    first = image_digest(file)
    file.write_bytes(b"A.png")
    os.utime(file, ns=(now, now))
    assert image_digest(file) == hashlib.sha256(b"A.png").hexdigest() != first


def test_a_missing_file_has_a_word_of_its_own(sample, tmp_path):
    whole = sample_digest(sample)
    assert image_digest(tmp_path / "nowhere.png") == image_digest(tmp_path) == MISSING == "missing"
    sample.images[1].unlink()
    assert sample_digest(sample) != whole
    sample.images[1].write_text("missing")
    assert image_digest(sample.images[1]) != MISSING


CHANGES = {
    "id": "8",
    "domain": "common",
    "question": "Which ?",
    "answers": ("B", "A"),
    "options": ("heart,", "lung"),
    "kind": "",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_it(sample, name):
    assert sample_digest(replace(sample, **{name: CHANGES[name]})) != sample_digest(sample)


def test_no_field_is_forgotten(sample):
    assert {one.name for one in fields(Sample)} == {*CHANGES, "images"}
    # The same texts, but on other sides of a border.
    moved = replace(sample, answers=("A",), options=("B", "heart", "lung"))
    assert sample_digest(moved) != sample_digest(sample)


@pytest.mark.parametrize("place", range(3))
def test_every_frames_bytes_change_it(sample, place):
    before = sample_digest(sample)
    file = sample.images[place]
    content = file.read_bytes()
    file.write_bytes(content[::-1])
    assert sample_digest(sample) != before
    file.write_bytes(content)
    assert sample_digest(sample) == before


def test_frames_count_in_order_and_their_places_on_disk_do_not(sample, tmp_path):
    assert sample_digest(replace(sample, images=sample.images[::-1])) != sample_digest(sample)
    assert sample_digest(replace(sample, images=sample.images[:2])) != sample_digest(sample)
    (tmp_path / "elsewhere").mkdir()
    moved = tuple(file.rename(tmp_path / "elsewhere" / f"moved-{file.name}") for file in sample.images)
    before = sample_digest(replace(sample, images=moved))
    for new, old in zip(moved, sample.images, strict=True):
        new.rename(old)
    assert sample_digest(sample) == before


def test_several_samples_have_one_digest_whatever_their_order(sample):
    samples = [replace(sample, id=str(number)) for number in range(5)]
    whole = content_digest(samples)
    assert content_digest(Random(1).sample(samples, 5)) == whole
    assert len({whole, content_digest(samples[:4]), content_digest([*samples, samples[0]]), content_digest([])}) == 4
    assert content_digest([*samples[:4], replace(samples[4], question="What?")]) != whole
