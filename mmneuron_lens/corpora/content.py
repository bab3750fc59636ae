"""Content: the digests that say what is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from mmneuron_lens.corpora.sample import Sample


def image_digest(path: Path) -> str:
    """The sha256 of a file's bytes, or "missing"."""
    try:
        state = path.stat()
        return _digest(path, state.st_size, state.st_mtime_ns)
    except OSError:
        return "missing"


@lru_cache(maxsize=1 << 16)
def _digest(path: Path, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_digest(sample: Sample) -> str:
    """The sha256 of everything about a sample."""
    images = [image_digest(path) for path in sample.images]
    facts = [sample.id, sample.domain, sample.question, sample.options, sample.answers, sample.kind, images]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def content_digest(samples: Iterable[Sample]) -> str:
    """The sha256 of several samples, whatever their order."""
    return hashlib.sha256("".join(sorted(map(sample_digest, samples))).encode()).hexdigest()
