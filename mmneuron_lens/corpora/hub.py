"""Corpora through the library `datasets` (extra `[corpora]`): a hub id, a folder it can load, or a copy it saved.

Rows need the columns of the published files, with the image itself in `image` (LingoQA: `images`, a list). Such are
lmms-lab/VQAv2 and lmms-lab/DocVQA. Images are written once, under their sha256, into a folder, so samples are the same
as those read from published files: paths. An image that a row names by a path lies in the data set's own folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from mmneuron_lens.artifacts.format import write_atomically
from mmneuron_lens.corpora import docvqa, lingoqa, pmc_vqa, rsvqa, vqav2
from mmneuron_lens.corpora.image_paths import image_file
from mmneuron_lens.corpora.records import RawRecord, RecordProblems, good, text
from mmneuron_lens.corpora.rows import BadRow, CorpusError, good_text, of_a_row, quote
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.extras import needed
from mmneuron_lens.wire.images import file_bytes

ID_COLUMNS = {
    "common": "question_id", "remote_sensing": "id", "medical": "Figure_path", "document": "questionId",
    "auto_driving": "question_id",
}  # fmt: skip


ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".avif", ".gif", ".bmp", ".jp2", ".ppm", ".pgm")
"""Of the names of files that are written; another is left out, since a name comes from outside."""


def read_hub(
    domain: str,
    source: str | Path,
    split: str,
    images: str | Path,
    problems: RecordProblems,
    *,
    config: str | None = None,
    revision: str | None = None,
) -> Iterator[Sample]:
    """Samples of a data set, row by row; nothing but the images is kept.

    - domain: whose published corpus's columns to expect.
    - source: a hub id (streamed, nothing downloaded ahead), a folder of files that `load_dataset` takes, or one that
      `save_to_disk` wrote.
    - split, config, revision: of the data set.
    - images: the folder that images are written to, each once.
    - problems: where rows that cannot be read are named.

    Raises `MissingPackage` without `datasets`, `CorpusError` for an unknown domain or a source that cannot be loaded.
    """
    if domain not in DOMAINS:
        raise CorpusError(f"unknown domain {domain!r}; choose from {', '.join(DOMAINS)}.")
    folder, own = Path(images), Path(source)
    rows = _rows(str(source), split, config, revision)
    records = (RawRecord(Path(source), number, row) for number, row in enumerate(rows, start=1))
    if domain == "auto_driving":
        yield from lingoqa.gathered((_with_frames(record, folder, own) for record in records), problems)
        return

    def make(row: dict[str, Any]) -> Sample:
        return _sample(domain, row, (_image(row.get("image"), folder, own),), split)

    if domain == "medical":
        records = (one._replace(value={"row": f"{split}-{one.number}", **one.value}) for one in records)
    yield from good(records, problems, make, ID_COLUMNS[domain])


def _sample(domain: str, row: dict[str, Any], images: tuple[Path, ...], split: str) -> Sample:
    if domain == "common":
        return vqav2.sample_of(row, images)
    if domain == "document":
        return docvqa.sample_of(row, images, answered=split != "test")
    if domain == "medical":
        return pmc_vqa.sample_of(row, images)
    answers = row.get("answers") if isinstance(row.get("answers"), list) else [row.get("answer")]
    return rsvqa.sample_of(row | {"answers": [text({"answer": one}, "answer") for one in answers or [None]]}, images)


def _rows(source: str, split: str, config: str | None, revision: str | None) -> Iterator[dict[str, Any]]:
    datasets = needed("datasets", "reading hub corpora")
    saved = Path(source)
    rows: Any
    try:
        if (saved / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(source)[split]
        elif (saved / "state.json").is_file():
            rows = datasets.load_from_disk(source)
        else:
            rows = datasets.load_dataset(source, config, split=split, revision=revision, streaming=True)
        # Encoded bytes go to disk as they are: decoding and encoding again would change them.
        # Decoding would also open whatever path or address a row names.
        for column, feature in (rows.features or {}).items():
            if (plain := _undecoded(feature)) != feature:
                rows = rows.cast_column(column, plain)
        yield from rows
    except MemoryError:
        raise
    except Exception as error:
        # What a damaged data set leads `datasets` and pyarrow to.
        says = " ".join(str(error).split())[:200]
        raise CorpusError(f"data set {source!r}, split {split!r} cannot be loaded ({says}); check both.") from error


def _undecoded(feature: Any) -> Any:
    """A feature as `datasets` describes it, in which nothing is decoded."""
    if isinstance(feature, dict):
        return {name: _undecoded(one) for name, one in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(one) for one in feature]
    if hasattr(feature, "feature"):
        made = copy(feature)
        made.feature = _undecoded(feature.feature)
        return made
    return replace(feature, decode=False) if hasattr(feature, "decode") else feature


def _with_frames(record: RawRecord, folder: Path, own: Path) -> RawRecord:
    try:
        with of_a_row():
            frames = record.value.get("images")
            if not isinstance(frames, list) or not frames:
                raise BadRow(f"images {quote(frames)} is no list of images; give the data set such a column.")
            return record._replace(value=record.value | {"images": [str(_image(one, folder, own)) for one in frames]})
    except BadRow as error:
        return record._replace(value=record.value | {"bad": str(error)})


def _image(value: Any, folder: Path, own: Path) -> Path:
    if isinstance(value, dict) and value.get("bytes"):
        return _written(value["bytes"], Path(value.get("path") or "").suffix, folder)
    if isinstance(value, dict) and value.get("path"):
        # `datasets` gives the paths of a folder of images whole.
        name, place = good_text("image", value["path"]), own.absolute()
        inside = PurePath(name).is_relative_to(place)
        return image_file(place, [str(PurePath(name).relative_to(place)) if inside else name])
    if isinstance(value, Image.Image):
        try:
            return _written(file_bytes(value), ".png", folder)
        except ValueError as error:
            raise BadRow(f"image cannot be decoded: {error}") from error
    raise BadRow(f"image {quote(value)} is no image; give the data set an image column, or read the published files.")


def _written(content: bytes, suffix: str, folder: Path) -> Path:
    name = hashlib.sha256(content).hexdigest()
    ending = suffix.lower() if suffix.lower() in ENDINGS else ""
    path = folder / name[:2] / f"{name}{ending}"
    if not path.is_file():
        write_atomically(path, content)
    return path
