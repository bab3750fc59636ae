"""What is asked, as digests: of an image's file, of a sample, of several samples. A digest names no path."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from mmneuron_lens.corpora.sample import Sample

MISSING = "missing"
"""Stands for the digest of a file that is not there or cannot be read, and equals no file's digest."""

SETTLED = 2 * 10**9
"""Nanoseconds after which a file's time of change is trusted; two changes of one size may share a time before."""


def image_digest(path: str | Path) -> str:
    """The sha256 of a file's bytes in hexadecimal, or `MISSING`. A file that did not change is read once a process."""
    try:
        found = os.stat(path)
        if time.time_ns() - found.st_mtime_ns < SETTLED:
            return _sha256(str(path))
        return _known(str(path), found.st_size, found.st_mtime_ns)
    except OSError:
        return MISSING


def sample_digest(sample: Sample) -> str:
    """The sha256 of what a sample asks and accepts: each of its fields, and every image's digest in order."""
    images = [image_digest(path) for path in sample.images]
    asked = [sample.id, sample.domain, sample.question, sample.options, sample.answers, sample.kind, images]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def content_digest(samples: Iterable[Sample]) -> str:
    """The sha256 of several samples' digests, the same whatever their order; a sample that comes twice counts twice."""
    return hashlib.sha256("\n".join(sorted(map(sample_digest, samples))).encode()).hexdigest()


@lru_cache(maxsize=2**16)
def _known(path: str, size: int, changed: int) -> str:
    return _sha256(path)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
