"""Fold: layers stacked, steps and batches joined as each read asked."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmneuron_lens.wire.facts_types import Layer
from mmneuron_lens.wire.types import Over, Overs, Results, Totals, Value


def stack(results: Results, overs: Overs) -> Totals:
    """One batch: `{key: {layer: [per step]}}` to `{key: value}` whose tensors start with the layer axis."""
    return {key: stack_layers(layers, overs[key]) for key, layers in results.items()}


def stack_layers(layers: dict[Layer, list[Value]], over: Over) -> Value:
    joined = [join_steps(steps, over) for _, steps in sorted(layers.items(), key=lambda item: item[0] or 0)]
    return joined[0] if None in layers else stack_all(joined)


def join_steps(steps: list[Value], over: Over) -> Value:
    if len(steps) == 1:
        return steps[0]
    if over == "list":
        return steps
    total = steps[0]
    for step in steps[1:]:
        total = add(total, step)
    return total


def stack_all(values: list[Value]) -> Value:
    """Layers as one value: tensors of equal shape stacked where the first is, else a list with an item per layer."""
    head = values[0]
    if isinstance(head, dict):
        return {name: stack_all([value[name] for value in values]) for name in head}
    if isinstance(head, tuple):
        return tuple(stack_all([value[index] for value in values]) for index in range(len(head)))
    if isinstance(head, list):
        return [stack_all([value[index] for value in values]) for index in range(len(head))]
    if not isinstance(head, torch.Tensor):
        return values
    shapes = {tuple(value.shape) for value in values}
    return torch.stack([value.to(head.device) for value in values]) if len(shapes) == 1 else values


def add(left: Value, right: Value) -> Value:
    """The exact sum of two partial results, leaf by leaf."""
    if isinstance(left, dict):
        return {name: add(left[name], right[name]) for name in left}
    if isinstance(left, tuple):
        return tuple(add(one, other) for one, other in zip(left, right, strict=True))
    if isinstance(left, list):
        # One item per layer, where layers cannot be stacked.
        return [add(one, other) for one, other in zip(left, right, strict=True)]
    return left + right


def merge(total: Totals, batch: Totals, overs: Overs) -> Totals:
    """Add one batch's results to the running total."""
    merged = dict(total)
    for key, value in batch.items():
        if overs[key] == "list":
            merged[key] = [*merged.get(key, []), value]
        else:
            merged[key] = value if key not in merged else add(merged[key], value)
    return merged


def finish(total: Totals, overs: Overs) -> Totals:
    """Divide the means, once."""
    return {key: divide(value) if overs[key] == "mean" else value for key, value in total.items()}


def divide(pair: tuple[Shaped[Tensor, "*where ..."], Shaped[Tensor, "*where"]]) -> Shaped[Tensor, "*where ..."]:
    amount, weight = pair
    while weight.ndim < amount.ndim:
        weight = weight[..., None]
    return amount / weight
