"""`repr` of values that hold tensors and long lists: what they are, in a line or a few, and none of their content."""

from __future__ import annotations

import reprlib
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from mmneuron_lens.artifacts.reachability import UNREACHABLE


class _Short(reprlib.Repr):
    """Tensors as dtype and shape; the first few entries of everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxtuple, self.maxlist = 3, 4, 4, 4
        self.maxstring = self.maxother = 80

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor):
            return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        if is_dataclass(x) and not isinstance(x, type):
            return short_repr(x)
        return super().repr1(x, level)


_SHORT = _Short()


def short_repr(value: Any) -> str:
    """A dataclass as its name and short forms of its fields, without `provenance` but for layers it calls unreachable.

    An artifact shows neurons by layer, so that those which cannot reach the logits are told here as in its tables.
    """
    shown = [
        f"{field.name}={_SHORT.repr(getattr(value, field.name))}"
        for field in fields(value)
        if field.name != "provenance"
    ]
    return f"{type(value).__name__}({', '.join(shown + unreachable_of(value))})"


def unreachable_of(value: Any) -> list[str]:
    """The layers that an artifact's provenance calls unreachable, for its `repr`."""
    found = (getattr(value, "provenance", None) or {}).get(UNREACHABLE)
    layers = {site: one["layers"] for site, one in (found or {}).items()}
    return [f"unreachable={layers}"] if layers else []
