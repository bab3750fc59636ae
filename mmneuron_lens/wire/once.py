"""Once: copies of a batch that share a forward, and pass the modules before the language model as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mmneuron_lens.wire.types import BatchData, Fields, Inputs, Job, Module, Sharing


def copied(batch: BatchData, copies: int, once: list[str]) -> BatchData:
    """A batch with its rows repeated, copy behind copy.

    once: paths of modules that all copies pass as one; the fields of what lies before the language model stay those of
    one copy.
    """
    if copies == 1:
        return batch
    once = once if "pixel_values" in batch["inputs"] else []
    inputs: Inputs = {name: repeated(value, copies, row_axis(name, value)) for name, value in batch["inputs"].items()}
    sharing: Sharing = {**batch["sharing"], "copies": copies, "once": once}
    spread = sharing.get("spread")
    if spread:
        images = batch["fields"]["vision"]["weight"].shape[0]
        sharing["spread"] = {
            **spread,
            "rows": [copy * images + image for copy in range(copies) for image in spread["rows"]],
        }
    fields: Fields = {"llm": {name: repeated(field, copies, 0) for name, field in batch["fields"]["llm"].items()}}
    for group, some in batch["fields"].items():
        if group != "llm":
            axis = 0 if group.startswith("qformer") else batch["tower"]["axis"]
            fields[group] = dict(some) if once else repeated_fields(some, copies, axis)
    return {**batch, "inputs": inputs, "fields": fields, "sharing": sharing}


def row_axis(name: str, value: Shaped[Tensor, "..."]) -> int:
    """The axis of rows of one of the model's inputs."""
    return value.ndim - 2 if name == "position_ids" else 0


def repeated(value: Shaped[Tensor, "..."], copies: int, axis: int) -> Shaped[Tensor, "..."]:
    return torch.cat([value] * copies, dim=axis)


def repeated_fields(some: Mapping[str, Tensor], copies: int, axis: int) -> dict[str, Tensor]:
    made = {name: repeated(field, copies, axis) for name, field in some.items()}
    if "order" in some:
        # In which order the tower holds patches, by their places among all of them.
        order = some["order"]
        made["order"] = torch.cat([order + copy * order.shape[1] for copy in range(copies)], dim=1)
    return made


def pass_once(envoy: Module, copies: int, axis: int) -> None:
    """Hand the first copy to a module, and what it returns to every copy.

    axis: along which the tower holds images: 1 where the patches of all of them stand in one row.
    """
    positional, keywords = envoy.inputs
    envoy.inputs = (first_copy(positional, copies), first_copy(keywords, copies))
    envoy.output = each_copy(envoy.output, copies, axis)


def first_copy(value: Any, copies: int) -> Any:
    """The first of the copies in every tensor."""
    if isinstance(value, torch.Tensor):
        axis = 1 if value.ndim > 1 and value.shape[0] == 1 else 0
        whole = value.ndim == 0 or value.shape[axis] % copies
        return value if whole else value.narrow(axis, 0, value.shape[axis] // copies)
    if isinstance(value, dict):
        return {name: first_copy(part, copies) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(first_copy(part, copies) for part in value)
    return value


def each_copy(value: Any, copies: int, axis: int) -> Any:
    """What the module returned for one copy, once for every copy."""
    if isinstance(value, torch.Tensor):
        in_one_row = axis == 1 and value.ndim == 3 and value.shape[0] == 1
        return repeated(value, copies, 1 if in_one_row else 0)
    if isinstance(value, dict):
        return type(value)(**{name: each_copy(part, copies, axis) for name, part in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(each_copy(part, copies, axis) for part in value)
    return value


def longest_answers(answers: Int[Tensor, "row token"], copies: int, job: Job) -> list[int]:
    """How many tokens the longest answer of each copy has: as many columns as it would have alone."""
    ended = torch.isin(answers, answers.new_tensor(job["ends"]))
    # An answer's own end is one of its tokens.
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, answers.shape[1])
    return lengths.view(copies, -1).amax(1).tolist()
