"""Fold: layers stacked, steps and batches joined as each read asked.

What a function folds stays apart by layer until the end: the function sees what the read returned at one layer. A fold
of ours takes all layers of a site at once, and what it folds is kept by the layers that are stacked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmneuron_lens.wire.facts_types import Layer
from mmneuron_lens.wire.fold_types import OurFold, Over, Stacked
from mmneuron_lens.wire.types import Overs, Results, Totals, Value


def stack(results: Results, overs: Overs) -> Totals:
    """One batch: `{key: {layer: [per step]}}` to `{key: value}`, whose tensors start with the layer axis; of what a
    function folds, to `{key: {layer: value}}`, and of a fold of ours to `{key: {layers: value}}`."""
    return {key: by_layer(layers, overs[key]) for key, layers in results.items()}


def by_layer(layers: dict[Layer, list[Value]], over: Over) -> Value:
    if not isinstance(over, str) and not callable(over):
        return by_stack(layers, over)
    joined = {layer: join_steps(steps, over) for layer, steps in layers.items()}
    return joined if callable(over) else stack_layers(joined)


def by_stack(layers: dict[Layer, list[Value]], over: OurFold) -> dict[Stacked, Value]:
    """Partial results of all layers as one, by these layers; each by itself where their shapes differ."""
    ordered = sorted(layers, key=lambda layer: layer or 0)
    shapes = {tuple((name, part.shape) for step in layers[layer] for name, part in step.items()) for layer in ordered}
    if None in layers or len(shapes) > 1:
        return {layer: fold_steps(layers[layer], over) for layer in ordered}
    steps = [stack_all(list(step)) for step in zip(*(layers[layer] for layer in ordered), strict=True)]
    return {tuple(ordered): fold_steps(steps, over)}


def fold_steps(steps: list[Value], over: OurFold) -> Value:
    if len(steps) == 1:
        return steps[0]
    total = over["alone"](steps[0])
    for step in steps[1:]:
        total = over["together"](total, step)
    return total


def settled(value: Value, over: Over) -> Value:
    """What one batch comes to by itself."""
    if isinstance(over, str) or callable(over):
        return value
    return {at: over["alone"](one) for at, one in value.items()}


def stack_layers(layers: dict[Layer, Value]) -> Value:
    if None in layers:
        return layers[None]
    return stack_all([value for _, value in sorted(layers.items(), key=lambda item: item[0] or 0)])


def join_steps(steps: list[Value], over: Over) -> Value:
    if len(steps) == 1:
        return steps[0]
    if over == "list":
        return steps
    total = steps[0]
    for step in steps[1:]:
        total = over(total, step) if callable(over) else join(total, step, over)
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


def join(left: Value, right: Value, over: Over) -> Value:
    """Two partial results as one: of one layer where a function folds them, else with all layers."""
    if over == "list":
        return [*left, *right]
    if isinstance(over, str):
        return leaf_by_leaf(left, right, larger if over == "max" else add)
    if callable(over):
        return each_layer(left, right, over) | but(right, left)
    if left.keys() != right.keys():
        left, right = apart(left), apart(right)
    return each_layer(left, right, over["together"]) | settled(but(right, left), over)


def each_layer(left: Value, right: Value, over: Callable[[Value, Value], Value]) -> Value:
    """What the left has, joined with what the right has of the same layers."""
    return {layer: over(value, right[layer]) if layer in right else value for layer, value in left.items()}


def but(some: Value, others: Value) -> Value:
    """The layers that others do not have."""
    return {layer: value for layer, value in some.items() if layer not in others}


def apart(stacked: dict[Stacked, Value]) -> dict[Layer, Value]:
    """Stacked layers one by one."""
    found = {}
    for at, value in stacked.items():
        for place, layer in enumerate(at if isinstance(at, tuple) else ()):
            found[layer] = {name: part[place] for name, part in value.items()}
        if not isinstance(at, tuple):
            found[at] = value
    return found


def leaf_by_leaf(left: Value, right: Value, leaf: Callable[[Value, Value], Value]) -> Value:
    if isinstance(left, dict):
        return {name: leaf_by_leaf(left[name], right[name], leaf) for name in left}
    if isinstance(left, tuple):
        return tuple(leaf_by_leaf(one, other, leaf) for one, other in zip(left, right, strict=True))
    if isinstance(left, list):
        # One item per layer, where layers cannot be stacked.
        return [leaf_by_leaf(one, other, leaf) for one, other in zip(left, right, strict=True)]
    return leaf(left, right)


def add(left: Value, right: Value) -> Value:
    return left + right


def larger(left: Value, right: Value) -> Value:
    """The larger of two, element by element; NaN where one is NaN."""
    if isinstance(left, torch.Tensor):
        return torch.maximum(left, right)
    return left if left >= right or left != left else right  # NaN is not itself.


def merge(total: Totals, batch: Totals, overs: Overs) -> Totals:
    """Add one batch's results to the running total."""
    merged = dict(total)
    for key, value in batch.items():
        one = [value] if overs[key] == "list" else value
        merged[key] = join(merged[key], one, overs[key]) if key in merged else settled(one, overs[key])
    return merged


def finish(total: Totals, overs: Overs) -> Totals:
    """Divide the means, once; stack what a function folded."""
    return {key: finished(value, overs[key]) for key, value in total.items()}


def finished(value: Value, over: Over) -> Value:
    if isinstance(over, dict) and any(isinstance(at, tuple) for at in value):
        return next(iter(value.values())) if len(value) == 1 else stack_layers(apart(value))
    if not isinstance(over, str):
        return stack_layers(value)
    return divide(value) if over == "mean" else value


def divide(pair: tuple[Shaped[Tensor, "*where ..."], Shaped[Tensor, "*where"]]) -> Shaped[Tensor, "*where ..."]:
    amount, weight = pair
    while weight.ndim < amount.ndim:
        weight = weight[..., None]
    return amount / weight
