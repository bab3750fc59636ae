"""Counting: how often each neuron is active, and how much."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import reads

# float32 holds integers exactly up to 2^24: 256 positions, each counted at most 65,535 times, stay below it.
_CHUNK = 256


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def count_active(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> Int[Tensor, " neuron"]:
    """M of equation 4: at how many positions each neuron's activation exceeds zero (section 3.1).

    An activation that is not a number exceeds nothing: count `count_not_finite` beside it.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding, at most 65,535

    Returns int64 `[neuron]`.
    """
    return _count(act, weight[..., None])[0]


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"), kind=batch_field("kind"))
def count_active_by_kind(
    act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"], kind: Bool[Tensor, "*where kind"]
) -> Int[Tensor, "kind neuron"]:
    """`count_active` for each kind of position apart.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding, at most 65,535
    - kind: bool `[*where, kind]`, one-hot in the order of `GROUP_KINDS`

    Returns int64 `[kind, neuron]`.
    """
    return _count(act, weight[..., None] * kind)


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"), kind=batch_field("kind"))
def count_positions(
    act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"], kind: Bool[Tensor, "*where kind"]
) -> Int[Tensor, " kind"]:
    """N of equation 4: how many positions of each kind were seen.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding
    - kind: bool `[*where, kind]`, one-hot in the order of `GROUP_KINDS`

    Returns int64 `[kind]`.
    """
    return (weight[..., None] * kind).flatten(0, -2).sum(0)


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def count_not_finite(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> Int[Tensor, ""]:
    """At how many positions some activation is infinite or not a number, as after an overflow of float16.

    Such an activation says nothing of its neuron, and the other counts cannot tell it from one that is at most zero:
    they are right where this is 0. Padding may hold anything.

    - act: `[*where, neuron]`; a position whose sum exceeds its dtype (float32's for float16) counts too
    - weight: int64 `[*where]`, how often each position counts: 0 for padding

    Returns int64 `[]`.
    """
    return not_finite(act, weight)


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"), kind=batch_field("kind"))
def count_checked(
    act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"], kind: Bool[Tensor, "*where kind"]
) -> dict[str, Tensor]:
    """`count_active_by_kind` and `count_not_finite` together, which takes less time than apart.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding, at most 65,535
    - kind: bool `[*where, kind]`, one-hot in the order of `GROUP_KINDS`

    Returns `active` int64 `[kind, neuron]` and `not finite` int64 `[]`.
    """
    return {"active": _count(act, weight[..., None] * kind), "not finite": not_finite(act, weight)}


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def sum_activations(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> Float[Tensor, " neuron"]:
    """The sum of each neuron's activation over positions.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding

    Returns float64 `[neuron]`.
    """
    return _weighted(act, weight).flatten(0, -2).sum(0)


@reads("llm.mlp.act", over="mean", weight=batch_field("weight"))
def mean_activation(
    act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]
) -> tuple[Float[Tensor, " neuron"], Int[Tensor, ""]]:
    """The mean activation of each neuron over positions: what mean ablation puts in its place.

    - act: `[*where, neuron]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding

    Returns the sum, float64 `[neuron]`, and the number of positions; a run divides them and gives float64 `[neuron]`.
    """
    return _weighted(act, weight).flatten(0, -2).sum(0), weight.sum()


def _weighted(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> Float[Tensor, "*where neuron"]:
    """Every position times its weight, in float64; padding is nothing, whatever it holds."""
    return (act.double() * weight[..., None]).masked_fill_((weight == 0)[..., None], 0)


def not_finite(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> Int[Tensor, ""]:
    """What `count_not_finite` returns."""
    # One sum a position shows it; that of a half may overflow by itself.
    total = act.sum(-1, dtype=torch.float32 if act.dtype == torch.float16 else act.dtype)
    return (~total.isfinite() & (weight > 0)).sum()


def _count(act: Float[Tensor, "*where neuron"], weights: Int[Tensor, "*where kind"]) -> Int[Tensor, "kind neuron"]:
    values = act.detach().flatten(0, -2)
    rows = weights.flatten(0, -2).T.float()
    counts = torch.zeros(rows.shape[0], values.shape[1], dtype=torch.int64, device=act.device)
    # Compared straight into floats, without a mask to convert, and into one buffer that stays in the cache.
    buffer = torch.empty(min(_CHUNK, values.shape[0]), values.shape[1], dtype=torch.float32, device=act.device)
    # Given where to write, a product stays in float32 on a server that computes under autocast.
    product = torch.empty(counts.shape, dtype=torch.float32, device=act.device)
    for some, some_rows in zip(torch.split(values, _CHUNK), torch.split(rows, _CHUNK, dim=1), strict=True):
        active = torch.gt(some, 0, out=buffer[: some.shape[0]])
        counts += torch.mm(some_rows, active, out=product).long()
    return counts
