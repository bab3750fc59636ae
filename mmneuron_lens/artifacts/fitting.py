"""What a file must hold before anything is computed from it: types of fields; dtypes, shapes and ranges of tensors."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, cast, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import is_typeddict

from interventions.errors import InvalidValue

ROUNDING = 1e-6
"""How far rounding may carry a share, a probability or an entropy beyond its range."""


def refuse_unless(fits: bool, field: str, problem: str) -> None:
    """Raises `InvalidValue` naming the field and what is wrong with it, unless it fits."""
    if not fits:
        raise InvalidValue(f"{field} {problem}")


def refuse_types(value: Any) -> None:
    """Raises `InvalidValue` naming the first field of a dataclass that is not of the type it is annotated with.

    Fields that are dataclasses are not looked into.
    """
    for name, adapter in _adapters(type(value)).items():
        try:
            adapter.validate_python(getattr(value, name), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, [name, *first["loc"]]))
            raise InvalidValue(f"{field} is {first['input']!r:.60}: {first['msg']}") from None


def refuse_tensor(field: str, tensor: Tensor, dtype: torch.dtype, *shape: int | str) -> None:
    """Raises `InvalidValue` for another dtype or shape. shape: sizes; a word stands for any size."""
    fits = tensor.dtype == dtype and tensor.ndim == len(shape)
    fits = fits and all(isinstance(size, str) or size == own for size, own in zip(shape, tensor.shape, strict=True))
    asked = f"{dtype} [{', '.join(map(str, shape))}]"
    refuse_unless(fits, field, f"is {tensor.dtype} {list(tensor.shape)}, not {asked}")


def refuse_range(field: str, tensor: Tensor, low: float, high: float | Tensor | None = None) -> None:
    """Raises `InvalidValue` for a value below `low` or above `high`; NaN passes."""
    refuse_unless(not bool((tensor < low).any()), field, f"has values below {low:g}")
    if high is not None:
        limit = f"{high:g}" if isinstance(high, float | int) else "their number"
        refuse_unless(not bool((tensor > high).any()), field, f"has values above {limit}")


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    config = ConfigDict(arbitrary_types_allowed=True)
    hints = get_type_hints(kind)
    own = {one.name: hints[one.name] for one in fields(cast(Any, kind)) if not is_dataclass(hints[one.name])}
    return {name: TypeAdapter(hint, config=None if is_typeddict(hint) else config) for name, hint in own.items()}
