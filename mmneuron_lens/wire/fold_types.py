"""Types of folds: how partial results become one. They are read by people and type checkers; none of them travels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypedDict

from mmneuron_lens.wire.facts_types import Layer


class OurFold(TypedDict):
    """A fold that takes all layers at once.

    alone: one partial result in the form that is kept. together: one of that form and a partial result as one.
    """

    alone: Callable[[Any], Any]
    together: Callable[[Any, Any], Any]


Over: TypeAlias = Literal["sum", "mean", "list", "max"] | Callable[[Any, Any], Any] | OurFold
"""A word, a function of two partial results of one layer, or a fold of ours."""

Stacked: TypeAlias = tuple[Layer, ...] | Layer
"""Layers that are stacked, or one by itself."""
