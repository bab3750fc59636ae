"""Fold: layers stacked, steps and batches joined as each read asked."""

from __future__ import annotations

import torch


def stack(results, overs):
    """One batch: `{key: {layer: [per step]}}` to `{key: value}` whose tensors start with the layer axis."""
    return {key: stack_layers(layers, overs[key]) for key, layers in results.items()}


def stack_layers(layers, over):
    joined = [join_steps(steps, over) for _, steps in sorted(layers.items(), key=lambda item: item[0] or 0)]
    return joined[0] if None in layers else stack_all(joined)


def join_steps(steps, over):
    if len(steps) == 1:
        return steps[0]
    if over == "list":
        return steps
    total = steps[0]
    for step in steps[1:]:
        total = add(total, step)
    return total


def stack_all(values):
    """Layers as one value: tensors of equal shape stacked, anything else as a list with an item per layer."""
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
    return torch.stack(values) if len(shapes) == 1 else values


def add(left, right):
    """The exact sum of two partial results, leaf by leaf."""
    if isinstance(left, dict):
        return {name: add(left[name], right[name]) for name in left}
    if isinstance(left, tuple):
        return tuple(add(one, other) for one, other in zip(left, right, strict=True))
    if isinstance(left, list):
        # One item per layer, where layers cannot be stacked.
        return [add(one, other) for one, other in zip(left, right, strict=True)]
    return left + right


def merge(total, batch, overs):
    """Add one batch's results to the running total."""
    merged = dict(total)
    for key, value in batch.items():
        if overs[key] == "list":
            merged[key] = [*merged.get(key, []), value]
        else:
            merged[key] = value if key not in merged else add(merged[key], value)
    return merged


def finish(total, overs):
    """Divide the means, once."""
    return {key: divide(value) if overs[key] == "mean" else value for key, value in total.items()}


def divide(pair):
    amount, weight = pair
    while weight.ndim < amount.ndim:
        weight = weight[..., None]
    return amount / weight
