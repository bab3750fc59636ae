"""Decoding ahead: images of the next batches are decoded in worker processes while the model works on this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.sample import Sample

Opener = Callable[[Sample, Problems | None], list[Image.Image] | None]
"""The images of a sample, decoded; as `corpora.folder.open_images`."""

Decoded = dict[tuple[Path, ...], list[Image.Image] | None]
"""The images of one batch by their files; None where one of them cannot be decoded."""


class _Pictures(Dataset[Decoded]):
    """What one batch after another needs to have decoded."""

    def __init__(self, batches: Sequence[Sequence[Sample]]) -> None:
        self.files = [list(dict.fromkeys(sample.images for sample in some)) for some in batches]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Decoded:
        return {files: _decoded(files) for files in self.files[number]}


def decoded_ahead(batches: Sequence[Sequence[Sample]], workers: int = 0) -> Iterator[Opener]:
    """For each batch, in order, what opens the images of its samples.

    workers: processes that decode, each up to two batches ahead; 0 decodes here, when it is asked for. The images are
    the same. One that cannot be decoded is opened here again, so that it is named, or raised, as without workers.
    Raises `ValueError` for fewer than 0 workers.
    """
    if workers < 0:
        raise InvalidValue(f"workers is {workers}; it must be 0 (decode beside the model) or more.")
    if not workers or not batches:
        for _ in batches:
            yield open_images
        return
    # A generator of its own: a loader draws from the global one otherwise, and moves every draw that comes after.
    # Batches come as they are, one at a time.
    loader = DataLoader(
        _Pictures(batches), batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=torch.Generator(),
        worker_init_fn=end_with_parent,
    )  # fmt: skip
    for decoded in loader:
        yield _opener(decoded)


def end_with_parent(number: int = 0) -> None:
    """Ends this worker process as soon as the process that started it is gone, whatever the worker is doing.

    number: of the worker; not used.
    """
    if parent := parent_process():
        Thread(target=_outlive_nobody, args=(parent.sentinel,), daemon=True).start()


def _outlive_nobody(sentinel: int) -> None:
    # A pipe whose other end the parent holds: it closes however the parent ends, before this was called too.
    with suppress(OSError):
        connection.wait([sentinel])
    os._exit(1)


def _opener(decoded: Decoded) -> Opener:
    def opened(sample: Sample, problems: Problems | None = None) -> list[Image.Image] | None:
        found = decoded.get(sample.images)
        return open_images(sample, problems) if found is None else list(found)

    return opened


def _decoded(files: tuple[Path, ...]) -> list[Image.Image] | None:
    try:
        return open_images(Sample("", "", files, "", ()))
    except ValueError:
        return None


def _as_it_is(decoded: Any) -> Any:
    return decoded
