"""Over: how the partial results of a read become one: a word, a function of two partial results, or a fold of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from interventions.errors import InvalidType, InvalidValue
from interventions.sites import unknown

Word: TypeAlias = Literal["sum", "mean", "list", "max"]
Over: TypeAlias = Word | Callable[[Any, Any], Any]
"""A word, or an associative pure function of two partial results, which returns a partial result."""

OVERS: tuple[Word, ...] = get_args(Word)


@dataclass(frozen=True)
class Fold:
    """A fold of this package with its settings, as `largest(20, by="activation")`. Two are equal when these are.

    - name: of the function that makes it.
    - settings: that function's arguments by name.
    - fewer: one partial result of no more than is kept, as a read hands it on.
    - alone: one partial result in the form in which it is kept.
    - together: one of that form, and a partial result, as one of that form.

    Axes before those that a fold looks at are kept: it takes all layers of a site at once.
    """

    name: str
    settings: tuple[tuple[str, int | str | None], ...]
    fewer: Callable[[Any], Any] = field(compare=False)
    alone: Callable[[Any], Any] = field(compare=False)
    together: Callable[[Any, Any], Any] = field(compare=False)

    def __call__(self, left: Any, right: Any) -> Any:
        """Two partial results as one."""
        return self.together(self.alone(left), self.alone(right))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.settings)})"


def checked_over(over: object, who: str) -> None:
    """Raise `InvalidValue` for another word, `InvalidType` for what is no function of two partial results."""
    if isinstance(over, Fold):
        return
    if not callable(over):
        if over not in OVERS:
            raise InvalidValue(f"{who}: {unknown('over', over, OVERS)} Or a function of two partial results.")
        return
    if not inspect.isfunction(over):
        raise InvalidType(
            f"{who}: over is a function of two partial results, not {type(over).__name__}: write one with def."
        )
    if over.__name__ == "<lambda>":
        raise InvalidType(f"{who}: over is a lambda, which has no name to show or save; write it with def.")
    parameters = list(inspect.signature(over).parameters.values())
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) != 2 or any(one.kind not in plain for one in parameters):
        taken = ", ".join(map(str, parameters)) or "nothing"
        raise InvalidType(
            f"{who}: {over.__name__} takes {taken}; a fold takes two partial results: def {over.__name__}(left, right)."
        )


def show_over(over: Over) -> str:
    """In a few characters: the word, the fold with its settings, or the function's name."""
    if isinstance(over, str):
        return over
    return repr(over) if isinstance(over, Fold) else over.__name__
