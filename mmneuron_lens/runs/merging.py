"""Merging: counts and moments of several runs, finished or in parts, brought together in one. Needs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.batching.gather import Held, Shard, disjoint, missing
from mmneuron_lens.experiments.count import counts_of
from mmneuron_lens.experiments.moments import OWN, counts_from, moments_of
from mmneuron_lens.runs.folder import files_in, refuse_misplaced
from mmneuron_lens.runs.keys import Key, StoreConflict, differences
from mmneuron_lens.runs.pieces import KeptPiece, form_of, steps_named
from mmneuron_lens.runs.store import Store

_KINDS: dict[str, tuple[type[Counts] | type[Moments], Callable[[Sequence[Held], Mapping[str, Any]], Any]]] = {
    "counts": (Counts, counts_of),
    "moments": (Moments, moments_of),
}
"""By folder, what lies there, and what its pieces come to."""


def merge_runs(runs: Sequence[str | Path], out: str | Path, replace: bool = False) -> list[Path]:
    """The counts and moments of several runs as one run's, in whatever order; returns their files.

    Counts are the same byte for byte as of one process, and so are the integers and maxima of moments; their sums may
    differ in the last bits. Moments bring the counts that they hold.

    - runs: folders with counts or moments, or with parts of them that `--shard` wrote; a part that lies in two is taken
      once.
    - out: the folder to write to. replace: as of `Store`.

    Raises `InvalidValue` when a run holds nothing, when parts differ in anything they were made from, or when some are
    missing; nothing is written then.
    """
    wholes: dict[str, list[Path]] = {}
    parts: dict[str, list[Path]] = {}
    for run in map(Path, runs):
        folders = [one for kind in _KINDS for one in (run / kind, *_folders(run / kind))]
        files = [file for folder in folders for file in files_in(folder)]
        pieces = [file for folder in folders for some in _folders(folder) for file in files_in(some)]
        pieces = [file for file in pieces if steps_named(file.stem) and file.parent.suffix == ".pieces"]
        if not files and not pieces:
            raise InvalidValue(f"{run} holds no counts; write some with `mmneuron count --shard 1/4 --out {run}`.")
        for file in files:
            wholes.setdefault(file.relative_to(run).as_posix(), []).append(file)
        for file in pieces:
            value = file.parent.relative_to(run).as_posix().removesuffix(".pieces") + ".safetensors"
            parts.setdefault(value, []).append(file)
    made = {path: _whole(path, wholes.get(path, []), parts.get(path, [])) for path in sorted({*wholes, *parts})}
    for key, found in list(made.values()):
        if isinstance(found, Moments):
            path = key.path.replace("moments/", "counts/", 1)
            facts = {name: value for name, value in key.facts.items() if name != OWN}
            there, _ = made.setdefault(path, (Key(path, facts), counts_from(found)))
            if differing := differences(there.facts, facts):
                raise StoreConflict(f"cannot merge {path} and {key.path}: {'; '.join(differing)}. Count both alike.")
    store = Store(out, replace=replace)
    for key, found in made.values():
        store.get_or_make(key, lambda _, found=found: found, type(found))
    return [store.path(key) for key, _ in made.values()]


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.glob("*") if one.is_dir() and not one.name.startswith("."))


def _whole(path: str, files: list[Path], parts: list[Path]) -> tuple[Key, Counts | Moments]:
    """What the files and pieces of one domain come to."""
    kind = path.partition("/")[0]
    codec, come_to = _KINDS[kind]
    counts = {file: codec.load_with_key(file) for file in files}
    pieces = {file: KeptPiece.load_with_key(file) for file in parts}
    for file, (one, _) in counts.items():
        refuse_misplaced(file.parents[2], file, kind, one.model, one.domain)
    for file, (one, _) in pieces.items():
        if file.stem != one.name or "steps" not in one.held.piece.facts:
            raise ArtifactError(f"{file}: holds steps {one.name}, not those of its name, or of no count; delete it.")
    keys = [(file, key or {}) for held in (counts, pieces) for file, (_, key) in held.items()]
    (first, facts), *others = keys
    for file, key in others:
        if differing := differences(facts, key):
            what = "; ".join(differing)
            raise StoreConflict(f"cannot merge {first} and {file}: {what}. Count both in the same way.")
    if counts:
        return Key(path, facts), counts[first][0]
    kept = [piece for piece, _ in pieces.values()]
    forms = {form_of(one): file for file, (one, _) in pieces.items() if one.held.piece.tensors}
    if len(forms) > 1:
        one, other, *_ = forms.values()
        raise StoreConflict(f"cannot merge {one} and {other}: their tensors have other names, types or sizes.")
    _refuse_missing(path, kept)
    return Key(path, facts), come_to(disjoint([one.held for one in kept]), facts)


def _refuse_missing(path: str, kept: Sequence[KeptPiece]) -> None:
    steps = kept[0].held.piece.facts["steps"]
    absent = set(missing(range(steps), disjoint([one.held for one in kept])))
    if not absent:
        return
    of = max(Shard.parse(one.shard).of for one in kept)
    lost = [f"{number}/{of}" for number in range(1, of + 1) if absent & set(Shard(number, of).steps(steps))]
    raise InvalidValue(
        f"cannot merge {path}: {len(absent)} of {steps} steps are missing, of shards {', '.join(lost)}; count them "
        f"with --shard {lost[0]}, or give the folder they are in."
    )
