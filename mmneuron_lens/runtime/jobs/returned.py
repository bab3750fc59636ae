"""Returned: what a job sends back, as an artifact: tensors by path, and the tree they hang in as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from interventions.errors import InvalidType
from mmneuron_lens.artifacts.format import read_artifact, write_artifact

KIND = "shard"


def write_returned(path: str | Path, returned: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a job's totals, answers and logits, atomically, with JSON facts about the shard.

    returned: dict of dicts, lists, tuples, tensors, numbers, text and None. Raises `TypeError` naming the place and the
    type of anything else.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(returned, tensors, "returned")
    write_artifact(path, KIND, tensors, {"tree": tree, "facts": facts})


def read_returned(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write_returned` wrote: the tree with its tensors, and the facts; raises as `read_artifact` does."""
    tensors, metadata = read_artifact(path, KIND)
    return _restore(metadata["tree"], tensors), metadata["facts"]


def _flatten(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {
            "dict": [
                [_flatten(name, tensors, place), _flatten(part, tensors, f"{place}[{name!r}]")]
                for name, part in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        parts = [_flatten(part, tensors, f"{place}[{index}]") for index, part in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": parts}
    if value is None or isinstance(value, str | int | float | bool):
        return {"value": value}
    raise InvalidType(f"{place} is a {type(value).__name__}; a read returns tensors, numbers, text, lists or dicts.")


def _restore(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((form, content),) = tree.items()
    if form == "tensor":
        return tensors[content]
    if form == "dict":
        return {_restore(name, tensors): _restore(part, tensors) for name, part in content}
    if form in ("list", "tuple"):
        parts = [_restore(part, tensors) for part in content]
        return parts if form == "list" else tuple(parts)
    return content
