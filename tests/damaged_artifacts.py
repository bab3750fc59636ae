"""Drawn damage to the files of artifacts: bytes that changed, and nonsense under a checksum that fits it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.format import read_artifact, read_lines, write_artifact, write_lines

FREE = ("parameters", "provenance", "settings", "facts", "key", "reasons", "notes", "metrics")
"""Fields that may hold any JSON of their type: nothing is computed from what is in them."""

SIGNED = (
    *("means", "embeddings", "effect-sizes", "neuron-effects", "jacobian lens", "tuned lens"),
    *("top-activations", "neuron-examples", "attributions", "moments", "comparison", "text-states", "neighbours"),
)
"""Kinds whose numbers may be negative."""

OTHERS: tuple[Any, ...] = (-1, 1.5, "x", None, [], {}, True, [[1]])
"""Values in place of others."""


def flipped(content: bytes, draw: random.Random) -> bytes:
    """The content with one bit changed, cut, emptied, longer, or with two bytes changed about."""
    made, place = bytearray(content), draw.randrange(len(content))
    how = draw.choice(("bit", "bit", "bit", "cut", "longer", "about", "empty"))
    if how == "bit":
        made[place] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del made[place:]
    elif how == "longer":
        made += draw.randbytes(1 + draw.randrange(20))
    elif how == "empty":
        made.clear()
    else:
        other = draw.randrange(len(content))
        made[place], made[other] = made[other], made[place]
    return bytes(made)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all that is no dict and no list in JSON, without those in `FREE`."""
    if isinstance(value, dict):
        return [one for key, part in value.items() if key not in FREE for one in leaves(part, (*path, key))]
    if isinstance(value, list):
        return [one for key, part in enumerate(value) for one in leaves(part, (*path, key))]
    return [path]


def changed(document: Any, draw: random.Random) -> str:
    """Puts something of another type, or a number that cannot be, in one place; says where."""
    path = draw.choice(leaves(document))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    wanted = [one for one in OTHERS if type(one) is not type(old)]
    # A whole number is a real one too, and there may be none where there is one.
    wanted = [one for one in wanted if not isinstance(old, float | None) or isinstance(one, str | list | dict | bool)]
    if type(old) is int:
        wanted.append(-1)
    holder[path[-1]] = draw.choice(wanted)
    return f"{path} {old!r:.40} is {holder[path[-1]]!r}"


def other_tensor(kind: str, tensors: dict[str, torch.Tensor], undefined: tuple[str, ...], draw: random.Random) -> str:
    """Changes one tensor to what it cannot be; says how."""
    # Of a piece, those that are read whatever else it holds.
    read = ("active/", "tokens/") if kind == "piece" else ("",)
    name = draw.choice(sorted(one for one in tensors if one.startswith(read)))
    old = tensors[name]
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "an axis more": lambda: old[None],
        "another type": lambda: old.to(torch.float32 if old.dtype == torch.float16 else torch.float16),
        "complex": lambda: old.to(torch.complex64),
    }
    if old.numel() and old.is_floating_point() and not name.startswith(undefined):
        ways["NaN"] = lambda: torch.full_like(old, torch.nan)
    if old.numel() and old.dtype not in (torch.bool, torch.uint8) and kind not in SIGNED and name != "boxes":
        ways["negative"] = lambda: torch.full_like(old, -1)
    how = draw.choice(sorted(ways))
    tensors[name] = ways[how]()
    return f"{name}: {how}"


def nonsense(made: Any, path: Path, draw: random.Random) -> str:
    """Writes an artifact with content that cannot be, and a checksum that fits it; says what was changed."""
    made.save(path)
    kind = getattr(made, "kind", "sample list")
    if isinstance(made, Artifact):
        tensors, metadata = read_artifact(path, kind)
        how = draw.choice(("field", "field", "key", "tensor", "tensor"))
        if how == "tensor":
            told = other_tensor(kind, tensors, made.undefined or ("\0",), draw)
        else:
            told = _other_metadata(metadata, how, draw)
        write_artifact(path, kind, tensors, metadata)
        return told
    rows, metadata = read_lines(path, kind)
    how = draw.choice(("row", "twice", "field", "key") if rows else ("field", "key"))
    if how == "row":
        told = changed(rows, draw)
    elif how == "twice":
        rows.append(copy.deepcopy(draw.choice(rows)))
        told = "a row twice"
    else:
        told = _other_metadata(metadata, how if leaves(metadata) else "key", draw)
    write_lines(path, kind, rows, metadata)
    return told


def _other_metadata(metadata: dict[str, Any], how: str, draw: random.Random) -> str:
    if how == "field":
        return changed(metadata, draw)
    name = draw.choice(sorted({*metadata} - {"provenance", "parameters", "reasons"}))
    del metadata[name]
    return f"no {name}"
