"""Folds: functions that make two partial results of a read into one, whatever the order of batches."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from interventions.errors import InvalidType, InvalidValue
from interventions.overs import Fold

_FIRST = ("sample", "position")


def largest(k: int, by: str, distinct: str | None = None) -> Fold:
    """Keep the k entries with the largest `by`: `over=largest(20, by="activation", distinct="sample")`.

    A read that folds so returns a dict of tensors of one shape, whose last axis is its candidates, as many as it likes.
    The result has the same keys, `[..., k]`, best first. Where fewer than k are found, the rest is absent: `by` is
    -inf (of integers the smallest one), all else -1 (of flags False).

    Any order and grouping of batches gives the same bits. Of equal `by`, the lower `sample` comes first, then the lower
    `position`, where there are such keys, then the lower of the others by name. A candidate whose `by` is -inf or NaN
    is absent, so NaN never wins; `count_not_finite` beside the read tells of it.

    - k: how many are kept.
    - by: the key of the tensor that ranks.
    - distinct: the key of an integer tensor; of entries that have the same number there, the best alone is kept.

    Raises:

    - `InvalidType`: for what is no whole number or no text.
    - `InvalidValue`: for fewer than one, or `distinct` by what ranks.
    """
    if not isinstance(cast(object, k), int) or isinstance(k, bool):
        raise InvalidType(f"largest: k is a whole number, not {k!r}.")
    if k < 1:
        raise InvalidValue(f"largest: k is {k}; keep at least 1.")
    for name, value in (("by", by), ("distinct", distinct)):
        if not isinstance(cast(object, value), str) and (name == "by" or value is not None):
            raise InvalidType(f"largest: {name} is the name of a key, not {value!r}.")
    if distinct == by:
        raise InvalidValue(f"largest: distinct={distinct!r} is what ranks; name another key, or none.")

    def fewer(partial: dict[str, Tensor]) -> dict[str, Tensor]:
        return at_most(partial, k, by, distinct)

    def alone(partial: dict[str, Tensor]) -> dict[str, Tensor]:
        return best_of(partial, k, by, distinct)

    def together(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        return best_of_both(left, right, k, by, distinct)

    return Fold("largest", (("k", k), ("by", by), ("distinct", distinct)), fewer, alone, together)


def at_most(partial: dict[str, Tensor], k: int, by: str, distinct: str | None) -> dict[str, Tensor]:
    """A partial result with no more than k candidates. Raises `ValueError` for one of another form."""
    _check(partial, by, distinct)
    return best_of(partial, k, by, distinct) if partial[by].shape[-1] > k else partial


def best_of(partial: dict[str, Tensor], k: int, by: str, distinct: str | None) -> dict[str, Tensor]:
    """The k best candidates in order. Raises `ValueError` for a partial result of another form."""
    _check(partial, by, distinct)
    repeats = distinct is not None and not _ascend(partial[distinct])
    partial = _only(partial, partial[by] > _lowest(partial[by]), by)
    return _best(partial, k, by, distinct if repeats else None)


def best_of_both(
    left: dict[str, Tensor], right: dict[str, Tensor], k: int, by: str, distinct: str | None
) -> dict[str, Tensor]:
    """The k best of a result of `best_of` and of a partial result."""
    present = right[by] > _lowest(right[by])
    if not _has_values(present):
        return _best(_joined(left, _only(right, present, by)), k, by, distinct)
    # What ranks below the last of k cannot come in, nor make room for another.
    present &= right[by] >= left[by][..., -1:]
    rows = present.any(-1).flatten().nonzero()[:, 0]
    if not len(rows):
        return left
    if 2 * len(rows) > left[by][..., -1].numel():
        return _both(left, right, present, k, by, distinct)
    some = [{name: _rows(one, rows) for name, one in side.items()} for side in (left, right)]
    changed = _both(some[0], some[1], _rows(present, rows), k, by, distinct)
    return {
        name: one.reshape(-1, k).index_copy(0, rows, changed[name].to(one.dtype)).view(one.shape)
        for name, one in left.items()
    }


def _both(
    left: dict[str, Tensor],
    right: dict[str, Tensor],
    present: Bool[Tensor, "*where candidate"],
    k: int,
    by: str,
    distinct: str | None,
) -> dict[str, Tensor]:
    if present.shape[-1] > 1 and int(present.sum(-1).max()) > 1:
        repeats = distinct is not None and not _follow(left[distinct], right[distinct])
        return _best(_joined(left, _only(right, present, by)), k, by, distinct if repeats else None)
    place = present.to(torch.uint8).argmax(-1, keepdim=True)
    right = {name: value.gather(-1, place) for name, value in right.items()}
    return _inserted(left, _only(right, present.any(-1, keepdim=True), by), by, distinct)


def _rows(tensor: Shaped[Tensor, "*where candidate"], rows: Int[Tensor, " row"]) -> Shaped[Tensor, "row candidate"]:
    return tensor.reshape(-1, tensor.shape[-1])[rows]


def _only(entries: dict[str, Tensor], present: Bool[Tensor, "*where entry"], by: str) -> dict[str, Tensor]:
    """All others absent."""
    if _has_values(present) and bool(present.all()):
        return entries
    return {name: torch.where(present, value, _absent(value, name == by)) for name, value in entries.items()}


def _best(entries: dict[str, Tensor], k: int, by: str, distinct: str | None) -> dict[str, Tensor]:
    """The first k of entries by rank, absent ones behind where they are fewer."""
    return _padded(_ranked(entries, by, distinct), k, by)


def _inserted(best: dict[str, Tensor], new: dict[str, Tensor], by: str, distinct: str | None) -> dict[str, Tensor]:
    """The k best of k in order and one more candidate in each row."""
    ranks, k = best[by], best[by].shape[-1]
    before, equal = ranks > new[by], ranks == new[by]
    if bool(equal.any()):
        lower = torch.ones_like(before)
        for name in reversed(_tie_breakers(best, by)):
            lower = (best[name] < new[name]) | ((best[name] == new[name]) & lower)
        before = before | (equal & lower)
    place = before.sum(-1, keepdim=True)
    columns = torch.arange(k, device=ranks.device)
    here, behind = columns == place, columns > place
    if distinct is not None:
        same = best[distinct] == new[distinct]
        if bool(same.any()):
            # In place of the last one goes that of the same sample; nothing comes in where that is better.
            same = same & (ranks > _lowest(ranks))
            gone = torch.where(same, columns, k - 1).amin(-1, keepdim=True)
            here, behind = here & (place <= gone), behind & (columns <= gone)
    source = torch.where(behind, columns - 1, columns)
    return {name: torch.where(here, new[name], value.gather(-1, source)) for name, value in best.items()}


def _check(partial: dict[str, Tensor], by: str, distinct: str | None) -> None:
    held = cast(object, partial)
    if not isinstance(held, dict) or not all(
        isinstance(one, Tensor) for one in cast("dict[str, object]", held).values()
    ):
        raise ValueError("largest folds dicts of tensors")
    for name in (by, distinct):
        if name is not None and name not in partial:
            raise ValueError(f"largest ranks by {by!r}, distinct {distinct!r}, and the read returns {list(partial)}")
    shapes = {name: tuple(one.shape) for name, one in partial.items()}
    if not shapes[by] or len(set(shapes.values())) > 1:
        raise ValueError(f"largest folds tensors of one shape, candidates last, and the read returns {shapes}")
    if partial[by].dtype == torch.bool or partial[by].is_complex():
        raise ValueError(f"largest ranks by numbers, and {by!r} is {partial[by].dtype}")
    if distinct is not None and (partial[distinct].is_floating_point() or partial[distinct].dtype == torch.bool):
        raise ValueError(f"largest tells entries apart by integers, and {distinct!r} is {partial[distinct].dtype}")


def _has_values(tensor: Tensor) -> bool:
    """Not so of the fake tensors that shapes are proved on."""
    return type(tensor) is Tensor


def _lowest(tensor: Tensor) -> float | int:
    return -torch.inf if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min


def _absent(tensor: Tensor, ranks: bool) -> Tensor:
    return torch.full((), _fill(tensor, ranks), dtype=tensor.dtype, device=tensor.device)


def _fill(tensor: Tensor, ranks: bool) -> float | int:
    return _lowest(tensor) if ranks else 0 if tensor.dtype in (torch.bool, torch.uint8) else -1


def _joined(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([left[name], right[name]], -1) for name in left}


def _padded(entries: dict[str, Tensor], k: int, by: str) -> dict[str, Tensor]:
    """The first k entries, absent ones behind where they are fewer."""
    made: dict[str, Tensor] = {}
    for name, value in entries.items():
        if value.shape[-1] < k:
            padded = value.new_full((*value.shape[:-1], k), _fill(value, name == by))
            padded[..., : value.shape[-1]] = value
            made[name] = padded
        else:
            made[name] = value[..., :k].contiguous()
    return made


def _ranked(entries: dict[str, Tensor], by: str, distinct: str | None) -> dict[str, Tensor]:
    """Entries best first; of those that must be distinct, all but the best absent and last."""
    if entries[by].shape[-1] < 2:
        return entries
    ordered = _in_order(entries, by, _tie_breakers(entries, by))
    if distinct is None:
        return ordered
    again = _seen_before(ordered[distinct]) & (ordered[by] > _lowest(ordered[by]))
    if _has_values(again) and not bool(again.any()):
        return ordered
    gone = {name: torch.where(again, _absent(value, name == by), value) for name, value in ordered.items()}
    behind = again.to(torch.uint8).sort(dim=-1, stable=True).indices
    return {name: value.gather(-1, behind) for name, value in gone.items()}


def _ascend(numbers: Int[Tensor, "*where entry"]) -> bool:
    """Whether each is above the one before, so that none stands there twice."""
    return _has_values(numbers) and bool((numbers[..., 1:] > numbers[..., :-1]).all())


def _follow(left: Int[Tensor, "*where entry"], right: Int[Tensor, "*where entry"]) -> bool:
    """Whether the right ascends, above all of the left: samples are mostly seen in order."""
    return _ascend(right) and bool(right[..., 0].amin() > left.amax())


def _tie_breakers(entries: dict[str, Tensor], by: str) -> list[str]:
    """The keys that decide between equal entries, in this order."""
    first = [name for name in _FIRST if name in entries and name != by]
    return first + sorted(name for name in entries if name not in (by, *_FIRST))


def _in_order(entries: dict[str, Tensor], by: str, names: list[str]) -> dict[str, Tensor]:
    order = entries[by].sort(dim=-1, descending=True, stable=True).indices
    ordered = {name: value.gather(-1, order) for name, value in entries.items()}
    if not _has_values(order):
        return _by_all(ordered, by, names)
    ranks = ordered[by]
    tied = ((ranks[..., 1:] == ranks[..., :-1]) & (ranks[..., 1:] > _lowest(ranks))).any(-1).flatten()
    rows = tied.nonzero()[:, 0]
    if not len(rows):
        return ordered
    flat = {name: value.reshape(-1, value.shape[-1]) for name, value in ordered.items()}
    settled = _by_all({name: value[rows] for name, value in flat.items()}, by, names)
    return {name: flat[name].index_copy(0, rows, settled[name]).view(ordered[name].shape) for name in ordered}


def _by_all(entries: dict[str, Tensor], by: str, names: list[str]) -> dict[str, Tensor]:
    """Sorted by the least of the keys first, so that the first of them decides."""
    for name in reversed(names):
        order = entries[name].sort(dim=-1, stable=True).indices
        entries = {each: value.gather(-1, order) for each, value in entries.items()}
    order = entries[by].sort(dim=-1, descending=True, stable=True).indices
    return {each: value.gather(-1, order) for each, value in entries.items()}


def _seen_before(numbers: Int[Tensor, "*where entry"]) -> Tensor:
    """Bool, of the same shape: whether a number stands further to the left too."""
    ordered, order = numbers.sort(dim=-1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
    return torch.zeros_like(again).scatter(-1, order, again)
