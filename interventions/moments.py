"""Moments: how often and how much each neuron is active, in one pass over its activations."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.counting import not_finite
from interventions.decorators import reads

ABOVE = 0.1
"""The second threshold at which positions are counted."""

_ROWS = 128
"""Positions at most whose sum is float32, which holds integers exactly up to 2^24: each counts up to 65,535 times."""


def added(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two results of `moments` as one: the larger maximum, and the sum of everything else.

    Integers and maxima are the same in whatever order batches come; float64 sums but for their last bits.
    """
    return {
        name: torch.maximum(value, right[name]) if name == "maximum" else value + right[name]
        for name, value in left.items()
    }


@reads("llm.mlp.act", over=added, weight=batch_field("weight"), kind=batch_field("kind"))
def moments(
    act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"], kind: Bool[Tensor, "*where kind"]
) -> dict[str, Tensor]:
    """How often each neuron is active and how strongly, for each kind of position apart.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding, which may hold anything; at most 65,535
    - kind: bool `[*where, kind]`, one-hot in the order of `GROUP_KINDS`

    Returns, each `[kind, neuron]`:

    - `positive`, `above`: int64, at how many positions the value exceeds 0, and `ABOVE` (0.1)
    - `sum`, `square`: float64, the sums of the values and of their squares
    - `maximum`: float32 (float64 of float64), the largest value; -inf where there is no position of the kind

    and `positions`, int64 `[kind]`, as `count_positions`, and `not finite`, int64 `[]`, as `count_not_finite`: the
    others say nothing unless it is 0.

    At most 128 positions are summed in float32 (float64 of float64), and those sums in float64, so a sum is off by less
    than 8e-6 of the sum of its terms' absolute values, and mostly by less than 1e-6.
    """
    values = act.detach().flatten(0, -2)
    rows = (weight[..., None] * kind).flatten(0, -2).T
    order, sizes = _by_kind(rows)
    size = min(_at_once(act), len(order))
    exact = torch.float64 if act.dtype == torch.float64 else torch.float32
    weights, neurons = rows.to(exact)[:, order], values.shape[1]
    if size > _ROWS:
        # Whole groups: the last position again, counted 0 times.
        short = -len(order) % _ROWS
        order, weights = torch.cat([order, order[-1:].expand(short)]), torch.nn.functional.pad(weights, (0, short))
        size = min(_at_once(act), len(order))
    totals = torch.zeros(4, len(rows), neurons, dtype=torch.float64, device=act.device)
    sums = torch.empty_like(totals, dtype=torch.float64 if size > _ROWS else exact)
    positive, above, total, square = sums.unbind()
    maximum = torch.full((len(rows), neurons), -torch.inf, dtype=exact, device=act.device)
    picked, made = (torch.empty(size, neurons, dtype=dtype, device=act.device) for dtype in (act.dtype, exact))
    held = picked if act.dtype == exact else torch.empty_like(made)
    for start in range(0, len(order), size or 1):
        some, now = order[start : start + size], weights[:, start : start + size]
        if len(some) < size:
            picked, held, made = picked[: len(some)], held[: len(some)], made[: len(some)]
        torch.index_select(values, 0, some, out=picked)
        if held is not picked:
            held.copy_(picked)
        _sum(now, torch.gt(held, 0, out=made), positive)
        _sum(now, torch.gt(held, ABOVE, out=made), above)
        _sum(now, held, total)
        _sum(now, torch.mul(held, held, out=made), square)
        totals += sums
        _raise(maximum, held, start, sizes)
    counts = totals[:2].long()
    return {
        **{"positive": counts[0], "above": counts[1], "sum": totals[2], "square": totals[3], "maximum": maximum},
        **{"positions": rows.sum(1), "not finite": not_finite(act, weight)},
    }


def _at_once(act: Float[Tensor, "*where neuron"]) -> int:
    """Positions that are looked at together: on a processor so few that they stay in its cache, elsewhere many."""
    if act.device.type != "cpu":
        return 16 * _ROWS
    return max(8, min(_ROWS, 2**17 // max(1, act.shape[-1])))


def _sum(
    weights: Float[Tensor, "kind some"], values: Float[Tensor, "some neuron"], out: Float[Tensor, "kind neuron"]
) -> None:
    """In float32 where that is asked for, which is of at most `_ROWS` positions; else of so many each, then float64."""
    if out.dtype == values.dtype:
        torch.mm(weights, values, out=out)
        return
    groups, grouped = weights.reshape(len(weights), -1, _ROWS).transpose(0, 1), values.view(-1, _ROWS, values.shape[1])
    product = torch.empty(len(groups), *out.shape, dtype=values.dtype, device=values.device)
    # Given where to write, it stays in float32 under autocast.
    torch.sum(torch.bmm(groups, grouped, out=product), 0, dtype=torch.float64, out=out)


def _by_kind(rows: Int[Tensor, "kind position"]) -> tuple[Int[Tensor, " real"], list[int]]:
    """The positions that count, kind by kind, and how many are of each kind."""
    if type(rows) is not Tensor:
        # Shapes are proved on tensors without values; what is returned has the same shape for any order.
        return torch.arange(rows.shape[1], device=rows.device), [rows.shape[1]]
    kinds, order = rows.nonzero(as_tuple=True)
    sizes = torch.bincount(kinds, minlength=len(rows))
    return order, cast("list[int]", sizes.tolist())  # pyright: ignore[reportUnknownMemberType]


def _raise(
    maximum: Float[Tensor, "kind neuron"], held: Float[Tensor, "some neuron"], start: int, sizes: list[int]
) -> None:
    """Takes the largest of the positions from `start` on into the maximum of their kinds."""
    first = 0
    for number, size in enumerate(sizes):
        low, high = max(0, first - start), min(len(held), first + size - start)
        if low < high:
            torch.maximum(maximum[number], held[low:high].amax(0), out=maximum[number])
        first += size
