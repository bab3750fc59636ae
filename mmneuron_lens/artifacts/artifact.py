"""What every artifact can do: be written with what it was made from, and be read again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from interventions.errors import NotFinite
from mmneuron_lens.artifacts.format import read_artifact, write_artifact
from mmneuron_lens.artifacts.short_repr import short_repr

KEY = "key"
"""Metadata: the facts that a run knows the value by; see `runs.store`."""


class Artifact(ABC):
    """A value with a file format: tensors, and metadata that JSON holds."""

    kind: ClassVar[str]
    undefined: ClassVar[tuple[str, ...]] = ()
    """How the names of tensors begin in which NaN says that there is no value, as the class's docstring tells."""

    def __repr__(self) -> str:
        return short_repr(self)

    @abstractmethod
    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and the metadata."""

    @classmethod
    @abstractmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Self:
        """The value again from what `packed` gave."""

    def save(self, path: str | Path, key: Mapping[str, Any] | None = None) -> None:
        """Writes the artifact to a file, atomically.

        Raises as `write_artifact`, and `NotFinite` for infinite values and NaN.

        - key: facts that say what the value is, for a run's store.
        """
        tensors, metadata = self.packed()
        for name, tensor in tensors.items():
            if name.startswith(self.undefined) or not tensor.is_floating_point():
                continue
            if not bool(tensor.isfinite().all()):
                count = int((~tensor.isfinite()).sum())
                raise NotFinite(
                    f"{path}: {count} values of {name} of {self.kind!r} are infinite or NaN, so it is not written; run "
                    "what made them again, in another dtype."
                )
        write_artifact(path, self.kind, tensors, metadata if key is None else {**metadata, KEY: dict(key)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote; raises as `read_artifact`."""
        return cls.load_with_key(path)[0]

    @classmethod
    def load_with_key(cls, path: str | Path) -> tuple[Self, dict[str, Any] | None]:
        """The artifact and the key that it was saved with, if any."""
        tensors, metadata = read_artifact(path, cls.kind)
        key = metadata.pop(KEY, None)
        return cls.unpacked(tensors, metadata), key
