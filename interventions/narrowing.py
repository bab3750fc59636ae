"""Narrowing: what `Intervention.at` takes, checked and put into one form."""

from __future__ import annotations

from collections.abc import Iterable, Set
from operator import index
from typing import Any, Literal, TypeAlias, cast

from interventions.errors import InvalidType, InvalidValue
from interventions.sites import GROUP_KINDS, SITES, matching, unknown

Slice: TypeAlias = tuple[Literal["slice"], int | None, int | None, int | None]
"""A slice as plain data: the word, start, stop and step."""

Positions: TypeAlias = str | tuple[int, ...] | Slice | None
"""A kind of position, indices, or a slice; None means all."""

StepsWord: TypeAlias = Literal["prompt", "generated", "all"]

Steps: TypeAlias = StepsWord | tuple[int, ...]
"""A word, or indices of forward passes (0 is the prompt)."""

POSITION_KINDS = tuple(dict.fromkeys(kind for kinds in GROUP_KINDS.values() for kind in kinds))
STEPS: tuple[StepsWord, ...] = ("prompt", "generated", "all")


def checked_sites(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The same names and globs.

    Raises `UnknownName` with the choices for one that means no site, `InvalidType` for what is no name, and
    `InvalidValue` for none at all.
    """
    if not patterns:
        raise InvalidValue('No site is named, so nothing would act; name one, e.g. .at("llm.mlp.act").')
    for pattern in patterns:
        if not isinstance(cast(object, pattern), str):
            raise InvalidType(f"A site is named by its text, not {type(pattern).__name__} {pattern!r}.")
        matching(pattern, tuple(SITES))
    return patterns


def indices(what: str, value: object) -> tuple[int, ...]:
    """One index or several as a tuple, in the order given; a set in ascending order.

    - what: the argument's name, for the message

    Raises `InvalidType` for a slice or anything that is no whole number, `InvalidValue` for no index at all, or one
    that is there twice.
    """
    if isinstance(value, slice):
        start = cast("slice[Any, Any, Any]", value).start or 0
        raise InvalidType(f"{what} takes indices, not a slice: write {what}=range({start}, n).")
    given: list[object] = [value]
    if isinstance(value, Iterable) and not isinstance(value, str):
        given = list(cast("Iterable[object]", value))
    found = [_index(what, one) for one in given]
    if not found:
        raise InvalidValue(f"{what}=[] names nothing, so nothing would act; leave it out for all of them.")
    seen: set[int] = set()
    for one in found:
        if one in seen:
            raise InvalidValue(f"{what} names {one} twice; name each once.")
        seen.add(one)
    return tuple(sorted(found)) if isinstance(value, Set) else tuple(found)


def _index(what: str, value: object) -> int:
    # A flag is a whole number to Python, and so is a tensor of one flag.
    if not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", "")):
        try:
            return index(value)  # pyright: ignore[reportArgumentType]
        except TypeError:
            pass
    raise InvalidType(f"{what} takes whole numbers, not {type(value).__name__} {value!r:.40}.")


def checked_layers(value: object, kept_in_order: bool) -> tuple[int, ...]:
    """Layers as indices. Raises `InvalidValue` where results would not come back in the order asked.

    - kept_in_order: whether it is a read, whose results are stacked in the model's order
    """
    layers = indices("layers", value)
    if kept_in_order:
        # How a negative layer compares with others is known when the model is.
        for some in ([one for one in layers if one >= 0], [one for one in layers if one < 0]):
            if some != sorted(some):
                raise InvalidValue(
                    f"layers={list(layers)}: results come back in the model's order, not in this one; "
                    f"write layers={[*sorted(layers, key=lambda one: (one < 0, one))]}."
                )
    return layers


def checked_positions(value: object) -> Positions:
    """A kind, indices in the order given, or a slice as plain data.

    Raises `InvalidValue` with the choices for a kind of position that no site has, or a step of 0, and as `indices`.
    """
    if isinstance(value, str):
        if value not in POSITION_KINDS:
            raise InvalidValue(unknown("kind of position", value, POSITION_KINDS))
        return value
    if isinstance(value, slice):
        part = cast("slice[object, object, object]", value)
        return _checked_slice(part.start, part.stop, part.step)
    if isinstance(value, tuple):
        match cast("tuple[object, ...]", value):
            case ("slice", start, stop, step):
                return _checked_slice(start, stop, step)
            case _:
                pass
    return indices("positions", cast(object, value))


def checked_rows(value: object) -> tuple[int, ...]:
    """Rows as indices in the order given. Raises `InvalidValue` for one before the first, and as `indices`."""
    rows = indices("rows", value)
    if min(rows) < 0:
        raise InvalidValue(f"rows={list(rows)}: rows count from 0; there is none before it.")
    return rows


def _checked_slice(*parts: object) -> Slice:
    start, stop, step = (None if part is None else _index("positions", part) for part in parts)
    if step == 0:
        raise InvalidValue("positions: the step of a slice is not 0.")
    return ("slice", start, stop, step)


def checked_steps(value: object, on_prompt_only: bool) -> Steps:
    """A word, or indices of forward passes in ascending order.

    - on_prompt_only: whether it is a rewire, which acts on the prompt

    Raises `InvalidValue` with the choices for a word that is none of them, a step before the prompt, an order that is
    not that of the passes, or a rewire at generated tokens.
    """
    if isinstance(value, str):
        if value not in STEPS:
            raise InvalidValue(unknown("steps", value, STEPS))
        steps = value
    else:
        steps = indices("steps", value)
        if min(steps) < 0:
            raise InvalidValue(f"steps={list(steps)}: steps count from 0, the prompt; there is none before it.")
        if list(steps) != sorted(steps):
            raise InvalidValue(f"steps={list(steps)}: passes come in their own order; write steps={sorted(steps)}.")
    if on_prompt_only and steps not in ("prompt", (0,)):
        raise InvalidValue(f"steps={show_steps(steps)}: a rewire acts on the prompt only; leave steps out.")
    return steps


def show_positions(positions: Positions) -> str:
    """As one would write them: `1:`, `0, -1`, `image`."""
    if isinstance(positions, tuple) and positions and positions[0] == "slice":
        return ":".join("" if part is None else str(part) for part in positions[1:]).removesuffix(":")
    return positions if isinstance(positions, str) else ", ".join(map(str, positions or ()))


def show_steps(steps: Steps) -> str:
    """As one would write them: `prompt`, `0, 1`."""
    return steps if isinstance(steps, str) else ", ".join(map(str, steps))
