"""Thumbnails: small copies of the pictures that are examples, as files beside a run's page of neurons."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from interventions.errors import InvalidValue
from interventions.files import storage_errors, write_atomically
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.batching.encoding import shown
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.folder import open_images
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens

LONGEST = 384
"""Pixels of the longer side."""

QUALITY = 85
"""Of the JPEG."""


def thumbnail_file(run: str | Path, digest: str) -> Path:
    """Where the thumbnail of a picture lies. digest: the sha256 of its file."""
    return Path(run) / "neurons" / "pictures" / f"{digest[:16]}.jpg"


def write_thumbnails(
    run: str | Path,
    examples: NeuronExamples,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    lens: Lens,
    frames: Frames = "fit",
    progress: Progress = quietly,
) -> list[Path]:
    """Writes the thumbnail of every picture of the examples' questions that is not there yet; returns all files.

    - samples_by_domain: the questions, with the images that they were asked with. frames: as of `encode`.

    A picture is as a viewer shows it; nothing of its file's metadata is kept. Nothing else of a corpus is copied.
    Raises `InvalidValue` for a picture that can no longer be read.
    """
    by_id = {(domain, one.id): one for domain, some in samples_by_domain.items() for one in some}
    files = [thumbnail_file(run, digest) for one in examples.samples for digest, _, _ in one.images]
    lacking = [
        one for one in examples.samples if any(not thumbnail_file(run, digest).is_file() for digest, *_ in one.images)
    ]
    for one in progress(lacking, "thumbnails of examples"):
        absent = {digest: thumbnail_file(run, digest) for digest, *_ in one.images}
        if all(file.is_file() for file in absent.values()):
            continue
        decoded = open_images(by_id[one.domain, one.id])
        assert decoded is not None, "what cannot be decoded raises where no problems are kept"
        seen, _ = shown(lens, by_id[one.domain, one.id], decoded, frames)
        if [(picture.height, picture.width) for picture in seen] != [tuple(size) for _, *size in one.images]:
            raise InvalidValue(f"question {one.id!r}: its pictures have changed since; read the examples again.")
        for picture, file in zip(seen, absent.values(), strict=True):
            with storage_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, thumbnail(picture))
    return list(dict.fromkeys(files))


def thumbnail(picture: Image.Image) -> bytes:
    """A picture as a JPEG of at most `LONGEST` pixels a side; a smaller one keeps its size."""
    small = picture.copy()
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    small.save(held, format="JPEG", quality=QUALITY)
    return held.getvalue()
