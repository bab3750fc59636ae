"""Pieces on disk: what is kept of a value while it is made, in a folder beside it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from interventions.errors import FileMissing, InvalidValue, StorageFailed
from interventions.files import storage_errors
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.artifacts.fitting import refuse_tensor, refuse_types, refuse_unless
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.artifacts.moments import check_moments
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.gather import Held, Piece, refuse_unfit
from mmneuron_lens.experiments.count_checks import moments_at
from mmneuron_lens.runs.keys import StoreConflict, differences, refusal

_OURS = re.compile(r"[0-9]{6,}-[0-9]{6,}[.]safetensors|[0-9a-f]{24}[.]jsonl|.+[.]damaged|[.].+[.]partial", re.DOTALL)
"""Names of the files in a folder of pieces that this package writes."""


def steps_named(name: str) -> range | None:
    """The steps that the name of a piece or a job stands for: "000004-000008"; None for another name."""
    found = re.fullmatch(r"([0-9]{6,})-([0-9]{6,})", name, re.ASCII)
    return None if found is None else range(int(found[1]), int(found[2]))


@dataclass(frozen=True, eq=False, repr=False)
class KeptPiece(Artifact):
    """A piece as a file, with the shard ("2/4") that made it."""

    kind: ClassVar[str] = "piece"
    undefined: ClassVar[tuple[str, ...]] = ("maximum/",)

    held: Held
    shard: str

    def check(self) -> None:
        piece = self.held.piece
        refuse_types(self.held)
        refuse_types(piece)
        refuse_unless(0 <= self.held.first < self.held.last, "first", f"to last is {self.name}, which holds none")
        for name, active in piece.tensors.items():
            kind, _, site = name.partition("/")
            if kind != "active":
                continue
            # [layer, kind, neuron] and [kind], of one bucket.
            tokens = piece.tensors[f"tokens/{site}"]
            refuse_unless(0 <= piece.group < BUCKETS, "group", f"is {piece.group}, of {BUCKETS}")
            refuse_unless(self.held.last <= piece.facts["steps"], "last", f"is {self.held.last}, beyond the steps")
            refuse_unless(len(piece.facts["kinds"][site]) == len(tokens), f"tokens/{site}", "is not of the kinds")
            refuse_tensor(f"tokens/{site}", tokens, torch.int64, "kind")
            refuse_tensor(name, active, torch.int64, "layer", len(tokens), "neuron")
            fits = bool(((active >= 0) & (active <= tokens[None, :, None])).all())
            refuse_unless(fits, name, "has a count below 0 or above the number of tokens")
            if f"sums/{site}" in piece.tensors:
                check_moments(site, moments_at(piece.tensors, site))

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return f"{self.held.first:06d}-{self.held.last:06d}"

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        piece = self.held.piece
        own = {"first": self.held.first, "last": self.held.last, "shard": self.shard, "group": piece.group}
        reasons = {"reasons": dict(piece.reasons)} if piece.reasons else {}
        return piece.tensors, {**own, "seen": piece.seen, "left": piece.left, "facts": dict(piece.facts), **reasons}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> KeptPiece:
        seen, left = tuple(metadata["seen"]), tuple(metadata["left"])
        reasons = metadata.get("reasons", {})
        piece = Piece(metadata["group"], tensors, seen, left, metadata["facts"], reasons=reasons)
        return cls(Held(metadata["first"], metadata["last"], piece), metadata["shard"])


class Pieces:
    """The pieces of one value. Every file is whole or absent; a damaged one is moved aside, said, and made again."""

    def __init__(
        self,
        value: Path,
        key: Mapping[str, Any],
        shard: str,
        replace: bool,
        say: Callable[[str], Any],
        still: Callable[[], None] = lambda: None,
    ) -> None:
        """
        - value: where the finished value will lie.
        - key: the facts that say what it is; pieces of another key are refused, or removed with `replace`.
        - shard: that this process makes.
        - still: raises when this process may not write any more; called before each write.
        """
        self.value, self.key, self.shard, self.replace, self.say, self.still = value, key, shard, replace, say, still
        self.folder = value.with_name(f"{value.stem}.pieces")
        self._known = set[int]()

    @property
    def jobs(self) -> Path:
        """Where the records of jobs on a server lie."""
        return self.folder / "jobs"

    def held(self, steps: Sequence[Step]) -> list[Held]:
        """The pieces of these steps; files of other names are left alone.

        Raises `StoreConflict` naming the difference when they were begun with another key, and `StorageFailed` when one
        that was there, or kept, in the life of this object is gone.
        """
        found = [kept.held for kept in self._read(steps)]
        there = {place for one in found for place in range(one.first, one.last)}
        # Another shard that was the last has finished the value, and removed the pieces.
        if not self._known <= there and not self.value.is_file():
            raise StorageFailed(
                f"{self.folder}: pieces that were kept there were deleted or damaged while the value was made, so it "
                "is not written; run the command again, and they are made again."
            )
        self._known |= there
        return found

    def _read(self, steps: Sequence[Step]) -> list[KeptPiece]:
        found: list[KeptPiece] = []
        for file in sorted(file for file in self.folder.glob("*.safetensors") if steps_named(file.stem) is not None):
            try:
                kept, key = KeptPiece.load_with_key(file)
                self._refuse_unfit(file, kept, steps)
            except FileMissing:
                # Another shard was the last, and has finished the value meanwhile.
                continue
            except ArtifactError as error:
                self.aside(file, error)
                continue
            if differing := differences(key or {}, self.key):
                if not self.replace:
                    raise StoreConflict(refusal(self.folder, differing))
                file.unlink(missing_ok=True)
                continue
            found.append(kept)
        return self._alike(found)

    def _refuse_unfit(self, file: Path, kept: KeptPiece, steps: Sequence[Step]) -> None:
        try:
            refuse_unless(kept.name == file.stem, "name", f"is not that of its steps, {kept.name}")
            refuse_unfit(kept.held, steps)
        except InvalidValue as error:
            raise ArtifactError(f"{file}: is no piece of this value: {error}.") from None

    def _alike(self, found: list[KeptPiece]) -> list[KeptPiece]:
        """Without pieces whose tensors have other names, types or sizes than most; they cannot be folded."""
        forms = [form_of(one) for one in found]
        usual = max((form for form in forms if form), key=forms.count, default=())
        for one, form in zip(found, forms, strict=True):
            if form and form != usual:
                file = self.folder / f"{one.name}.safetensors"
                self.aside(file, f"{file}: has tensors of other names, types or sizes than the other pieces.")
        return [one for one, form in zip(found, forms, strict=True) if form in ((), usual)]

    def aside(self, file: Path, why: object) -> None:
        """Moves a file that cannot be used aside, and says why."""
        with storage_errors(file), suppress(FileNotFoundError):
            # Unless another shard has moved it already.
            file.replace(file.with_suffix(".damaged"))
        self.say(f"{why} It was moved aside, and is made again.")

    def keep(self, held: Held) -> None:
        self.still()
        kept = KeptPiece(held, self.shard)
        file = self.folder / f"{kept.name}.safetensors"
        if not file.is_file():
            kept.save(file, self.key)
        self._known |= {*range(held.first, held.last)}
        for other in self.folder.glob("*.safetensors"):
            steps = steps_named(other.stem)
            if other != file and steps is not None and held.first <= steps.start and steps.stop <= held.last:
                other.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what is not needed any more once the value is there; files that are not ours stay."""
        # Another shard of the value may be clearing too.
        shutil.rmtree(self.jobs, ignore_errors=True)
        with suppress(OSError):
            for file in [file for file in self.folder.iterdir() if _OURS.fullmatch(file.name)]:
                shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)
            self.folder.rmdir()


def form_of(kept: KeptPiece) -> tuple[Any, ...]:
    """Names, types and sizes of a piece's tensors, the last axis apart: along it pieces may be joined."""
    counts = any(name.startswith("active/") for name in kept.held.piece.tensors)
    tensors = sorted(kept.held.piece.tensors.items())
    return tuple((name, one.dtype, one.shape if counts else one.shape[:-1]) for name, one in tensors)
