"""Pieces on disk: what is kept of a value while it is made, in a folder beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from interventions.errors import FileMissing, InvalidValue
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.batching.gather import Held, Piece
from mmneuron_lens.runs.keys import StoreConflict, differences, refusal


@dataclass(frozen=True, eq=False, repr=False)
class KeptPiece(Artifact):
    """A piece as a file, with the shard ("2/4") that made it."""

    kind: ClassVar[str] = "piece"

    held: Held
    shard: str

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        piece = self.held.piece
        own = {"first": self.held.first, "last": self.held.last, "shard": self.shard, "group": piece.group}
        reasons = {"reasons": dict(piece.reasons)} if piece.reasons else {}
        return piece.tensors, {**own, "seen": piece.seen, "left": piece.left, "facts": dict(piece.facts), **reasons}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> KeptPiece:
        first, last, group = metadata["first"], metadata["last"], metadata["group"]
        seen, left = tuple(metadata["seen"]), tuple(metadata["left"])
        piece = Piece(group, tensors, seen, left, metadata["facts"], reasons=metadata.get("reasons", {}))
        if not 0 <= first < last:
            raise InvalidValue(f"a piece of steps {first} to {last} holds none.")
        return cls(Held(first, last, piece), metadata["shard"])


class Pieces:
    """The pieces of one value. Every file is whole or absent; a damaged one is moved aside, said, and made again."""

    def __init__(
        self, value: Path, key: Mapping[str, Any], shard: str, replace: bool, say: Callable[[str], Any]
    ) -> None:
        """
        - value: where the finished value will lie.
        - key: the facts that say what it is; pieces of another key are refused, or removed with `replace`.
        - shard: that this process makes.
        """
        self.value, self.key, self.shard, self.replace, self.say = value, key, shard, replace, say
        self.folder = value.with_name(f"{value.stem}.pieces")

    @property
    def jobs(self) -> Path:
        """Where the records of jobs on a server lie."""
        return self.folder / "jobs"

    def held(self) -> list[Held]:
        """Raises `StoreConflict` naming the difference when they were begun with another key."""
        found = []
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                kept, key = KeptPiece.load_with_key(file)
            except FileMissing:
                # Another shard was the last, and has finished the value meanwhile.
                continue
            except ArtifactError as error:
                # Unless another shard has moved it already.
                with suppress(FileNotFoundError):
                    file.replace(file.with_suffix(".damaged"))
                self.say(f"{error} It was moved aside, and is made again.")
                continue
            if differing := differences(key or {}, self.key):
                if not self.replace:
                    raise StoreConflict(refusal(self.folder, differing))
                file.unlink(missing_ok=True)
                continue
            found.append(kept.held)
        return found

    def keep(self, held: Held) -> None:
        file = self.folder / f"{held.first:06d}-{held.last:06d}.safetensors"
        if not file.is_file():
            KeptPiece(held, self.shard).save(file, self.key)
        for other in self.folder.glob("*.safetensors"):
            first, _, last = other.stem.partition("-")
            if other != file and held.first <= int(first) and int(last) <= held.last:
                other.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what is not needed any more once the value is there."""
        # Another shard of the value may be clearing too.
        shutil.rmtree(self.folder, ignore_errors=True)
