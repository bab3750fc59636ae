"""Folding: how a read and its fold become the plain functions that run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, cast

from torch import Tensor

from interventions import Intervention
from interventions.errors import InvalidType
from interventions.overs import Fold
from interventions.overs import Over as Asked
from mmneuron_lens.runtime.typed import ShapeError, typed_function
from mmneuron_lens.wire.types import Over


def folding(over: Asked, typed: bool) -> Over:
    """A word, our fold, or a function of two results. typed: with a user's annotations checked at every call."""
    if isinstance(over, str):
        return cast(Over, over)
    if isinstance(over, Fold):
        return {"alone": over.alone, "together": over.together}
    return typed_function(over) if typed else over


def folded_read(intervention: Intervention, typed: bool) -> Callable[..., Any]:
    """The function of an intervention; of a read that one of our folds folds, with no more than that keeps."""
    function = typed_function(intervention.function) if typed else intervention.function
    if not isinstance(intervention.over, Fold):
        return function
    fewer = intervention.over.fewer

    def read(*value: Any, **arguments: Any) -> Any:
        return fewer(function(*value, **arguments))

    # What travels is found in its source by its own name.
    return functools.update_wrapper(read, function) if typed else read


def kind_of(partial: Any) -> Hashable:
    """What two partial results of one read have in common: keys, order, dtypes and numbers of axes, not shapes.

    Raises `InvalidType` for what is no tensor, or dict or tuple of these.
    """
    if isinstance(partial, Tensor):
        return (str(partial.dtype).removeprefix("torch."), partial.ndim)
    if isinstance(partial, tuple):
        return tuple(kind_of(part) for part in cast("tuple[Any, ...]", partial))
    if isinstance(partial, dict):
        parts = cast("dict[Any, Any]", partial)
        return frozenset((name, kind_of(part)) for name, part in parts.items())
    raise InvalidType(f"{type(partial).__name__}")


def refuse_unfoldable(fold: Callable[[Any, Any], Any], partial: Any, who: str) -> Any:
    """What a function makes of a partial result and itself, which must be a partial result again.

    Its tensors may have other sizes. Raises `ShapeError` where it is something else, and what the function raises.
    """
    try:
        before = kind_of(partial)
    except InvalidType as error:
        raise ShapeError(
            f"{who}: a read that a function folds returns a tensor, or a dict or tuple of tensors, not {error}."
        ) from None
    total = partial
    # Twice: what it returned must fit it too.
    for _ in range(2):
        total = fold(total, partial)
        try:
            after = kind_of(total)
        except InvalidType as error:
            after = str(error)
        if after != before:
            raise ShapeError(
                f"{who}: its fold {fold.__name__} made of two partial results {_shown(after)}, and one is "
                f"{_shown(before)}; a fold returns what it is given: the same keys, dtypes and numbers of axes."
            )
    return total


def _shown(kind: Hashable) -> str:
    if isinstance(kind, frozenset):
        parts = sorted(cast("frozenset[tuple[Any, Any]]", kind), key=lambda part: str(part[0]))
        return "{" + ", ".join(f"{name}: {_shown(part)}" for name, part in parts) + "}"
    if isinstance(kind, tuple) and len(kind) == 2 and isinstance(kind[0], str):
        return f"{kind[0]} of {kind[1]} axes"
    if isinstance(kind, tuple):
        return f"({', '.join(map(_shown, kind))})"
    return str(kind)
