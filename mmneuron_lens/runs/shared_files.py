"""The files of a run that are sent elsewhere: chosen by kind, without ids of samples, and naming no folder of here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.file_names import refuse_unportable
from mmneuron_lens.artifacts.format import read_sealed
from mmneuron_lens.artifacts.redacted import redacted
from mmneuron_lens.runs.folder import RunError
from mmneuron_lens.runs.shared_kinds import why_not_sent


@dataclass(frozen=True)
class SharedFiles:
    """What of a run is sent.

    - contents: by path below the run, the file, or the bytes that go in its place.
    - left_out: how many files are not sent, by why.
    """

    contents: Mapping[str, Path | bytes]
    left_out: Mapping[str, int]


def shared_of(run: Path, *, texts: bool = False, pictures: bool = False) -> SharedFiles:
    """What of a run is sent; every artifact is read, so that none that is damaged is.

    - texts, pictures: files with those of the corpus too, and with the ids of samples.

    Raises `RunError` for a folder without counts and selections, `ArtifactError` for a damaged file, and `InvalidValue`
    naming a file that names a folder of this machine.
    """
    # Pages with cases of a lens, and with pictures of neurons.
    pages = any(any((run / kind).rglob("*.safetensors")) for kind in ("traces", "examples"))
    contents, left = dict[str, Path | bytes](), Counter[str]()
    for file in _files(run):
        name = file.relative_to(run).as_posix()
        why = _why_not(file, name) or why_not_sent(name, pages, texts, pictures)
        if why:
            left[why] += why != "written anew"
            continue
        contents[name] = _content(file, texts)
    if not any(name.startswith(("counts/", "selection/")) for name in contents):
        raise RunError(f"{run} holds no counts and no selection; write them with `mmneuron count` and `select`.")
    _refuse_places(run, contents)
    return SharedFiles(contents, {why: left[why] for why in sorted(left) if left[why]})


def _files(run: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in order; links as they are, and nothing behind them."""
    for folder, folders, files in os.walk(run):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from sorted(Path(folder) / name for name in (*files, *links) if not name.startswith("."))


def _why_not(file: Path, name: str) -> str:
    if file.is_symlink():
        return "a link"
    try:
        refuse_unportable(name)
    except InvalidValue:
        return "no result: records, or not ours"
    return ""


def _content(file: Path, texts: bool) -> Path | bytes:
    if file.suffix == ".safetensors":
        changed = redacted(file)
        return file if changed is None or texts else changed
    if file.suffix == ".jsonl":
        read_sealed(file, "")
    return file


def _refuse_places(run: Path, contents: Mapping[str, Path | bytes]) -> None:
    """Raises `InvalidValue` for a file in which the run's folder, this one, or the user's own stands."""
    places = {f"{place}{os.sep}" for place in (run.absolute(), run.resolve(), Path.cwd(), Path.home())} - {os.sep}
    for name, content in contents.items():
        held = _searched(content)
        for place in sorted(places):
            if place.encode() in held:
                raise InvalidValue(
                    f"{run / name}: names {place}, a folder of this machine, so nothing is sent; rename the model, "
                    "corpus or domain that is called so, and make it again."
                )


def _searched(content: Path | bytes) -> bytes:
    if isinstance(content, bytes):
        return content
    if content.suffix == ".parquet":
        columns = pl.read_parquet(content).iter_columns()
        flat = [one.explode() if one.dtype == pl.List(pl.String) else one for one in columns]
        texts = [text for one in flat if one.dtype == pl.String for text in one.unique() if text is not None]
        return "\n".join(texts).encode()
    return content.read_bytes()
