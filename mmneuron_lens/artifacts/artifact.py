"""What every artifact can do: be written with what it was made from, and be read again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from torch import Tensor

from interventions.errors import NotFinite
from mmneuron_lens.artifacts.fitting import refuse_types, refuse_unless
from mmneuron_lens.artifacts.format import read_artifact, unpacking, write_artifact
from mmneuron_lens.artifacts.short_repr import short_repr

KEY = "key"
"""Metadata: the facts that a run knows the value by; see `runs.store`."""


class Artifact(ABC):
    """A value with a file format: tensors, and metadata that JSON holds.

    Each class lists its own fields. These are the same in all that have them:

    - `model`: its name. `domain`, `domains`: of the questions. `samples`, `id`: of questions, by their ids.
    - `parameters`: settings that the values depend on. `provenance`: what it was made from, and by which versions.
    """

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

    @abstractmethod
    def check(self) -> None:
        """Raises `InvalidValue` naming the field that does not fit the others, or cannot be."""

    def save(self, path: str | Path, key: Mapping[str, Any] | None = None) -> None:
        """Writes the artifact to a file, atomically.

        - path: the file, a safetensors file whatever it is called.
        - key: facts that say what the value is, for a run's store.

        Raises as `write_artifact`, and `NotFinite` for infinite values and NaN.
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
        """Reads from the file `path` what `save` wrote; raises as `read_artifact`."""
        return cls.load_with_key(path)[0]

    @classmethod
    def load_with_key(cls, path: str | Path) -> tuple[Self, dict[str, Any] | None]:
        """The artifact in the file `path`, and the key that it was saved with, if any."""
        tensors, metadata = read_artifact(path, cls.kind)
        key: Any = metadata.pop(KEY, None)
        with unpacking(path, cls.kind):
            refuse_unless(key is None or isinstance(key, dict), KEY, f"is {key!r:.60}, not an object")
            made = cls.unpacked(dict(tensors), metadata)
            refuse_types(made)
            _refuse_other_tensors(made.packed()[0], tensors)
            for name, tensor in tensors.items():
                certain = tensor.is_floating_point() and not name.startswith(cls.undefined)
                refuse_unless(not certain or bool(tensor.isfinite().all()), name, "has infinite values or NaN")
            made.check()
        return made, cast("dict[str, Any] | None", key)


def _refuse_other_tensors(own: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    """Raises `InvalidValue` where a file holds other tensors than its value would be written with."""
    for name in sorted(own.keys() | held.keys()):
        here, there = ((one[name].dtype, [*one[name].shape]) if name in one else None for one in (own, held))
        refuse_unless(here == there, name, f"is {_told(there)}, not {_told(here)}")


def _told(form: tuple[Any, list[int]] | None) -> str:
    return "absent" if form is None else f"{form[0]} {form[1]}"
