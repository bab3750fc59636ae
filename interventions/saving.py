"""Graphs as JSON: functions by name, tensors in a safetensors file beside it, found by their sha256."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interventions.bindings import BatchField, ModuleCall, PerLayer
from interventions.errors import InvalidValue
from interventions.graph import Graph
from interventions.intervention import Intervention

FORMAT, VERSION = "intervention-graph", 1
TRUSTED = ("interventions", "mmneuron_lens")


def save_graph(graph: Graph, path: str | Path) -> Path:
    """Write `path` (JSON) and, when the graph binds tensors, `path` with the suffix `.safetensors`.

    Raises `ValueError` for a function that cannot be found again by name (defined in a notebook, a lambda, nested).
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "interventions": [_describe(intervention, tensors) for intervention in graph],
    }
    if tensors:
        document["tensors"] = path.with_suffix(".safetensors").name
        save_file(tensors, path.with_suffix(".safetensors"))
    path.write_text(json.dumps(document, indent=1))
    return path


def load_graph(path: str | Path, packages: tuple[str, ...] = TRUSTED) -> Graph:
    """Read a saved graph. Loading imports the modules its functions live in, so only `packages` are allowed.

    Raises `ValueError` naming the file for another format, a newer version, a package that is not allowed, a
    function that is gone, or a tensor whose content does not match its sha256.
    """
    path = Path(path)
    document = json.loads(path.read_text())
    if document.get("format") != FORMAT:
        raise InvalidValue(f"{path}: not a saved graph (format {document.get('format')!r}, expected {FORMAT!r}).")
    if document["version"] > VERSION:
        raise InvalidValue(f"{path}: version {document['version']} is newer than {VERSION}; update this package.")
    tensors: dict[str, Tensor] = {}
    if "tensors" in document:
        tensors = load_file(path.parent / Path(document["tensors"]).name)
        for digest, tensor in tensors.items():
            if _digest(tensor) != digest:
                raise InvalidValue(
                    f"{path}: tensor {digest[:12]} was changed since the graph was saved; save it again."
                )
    return Graph(tuple(_restore(entry, tensors, packages, path) for entry in document["interventions"]))


def reference(intervention: Intervention) -> str:
    """`package.module:function`, or `ValueError` with the cure where the function has no such name."""
    function = intervention.function
    module, name = function.__module__, function.__qualname__
    found = None
    if module != "__main__" and "<" not in name:
        found = getattr(importlib.import_module(module), name, None)
        found = getattr(found, "function", found)
    if found is not function:
        raise InvalidValue(
            f"{intervention.name} cannot be saved: {module}:{name} cannot be imported again. "
            "Move the function to a module (a .py file) and import it from there."
        )
    return f"{module}:{name}"


def _describe(intervention: Intervention, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "function": reference(intervention),
        "mode": intervention.mode,
        "sites": list(intervention.sites),
        "over": intervention.over,
        "name": intervention.name,
        "bindings": {name: _pack(value, tensors) for name, value in intervention.bindings.items()},
        "layers": intervention.layers,
        "positions": intervention.positions,
        "steps": intervention.steps,
        "all_beams": intervention.all_beams,
    }


def _restore(entry: dict[str, Any], tensors: dict[str, Tensor], packages: tuple[str, ...], path: Path) -> Intervention:
    module, _, name = entry["function"].partition(":")
    if module.split(".")[0] not in packages:
        raise InvalidValue(
            f"{path}: {entry['function']} is outside the packages that may be loaded ({', '.join(packages)}). "
            f"If you trust this file: load_graph(path, packages=(..., {module.split('.')[0]!r}))."
        )
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise InvalidValue(f"{path}: {module} has no function {name!r}; was it renamed?")

    def tupled(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return Intervention(
        function=getattr(found, "function", found),
        mode=entry["mode"],
        sites=tuple(entry["sites"]),
        over=entry["over"],
        name=entry["name"],
        bindings={key: _unpack(value, tensors) for key, value in entry["bindings"].items()},
        layers=tupled(entry["layers"]),
        positions=tupled(entry["positions"]),
        steps=tupled(entry["steps"]),
        all_beams=entry["all_beams"],
    )


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        digest = _digest(value)
        tensors[digest] = value.detach().cpu().contiguous()
        return {"tensor": digest}
    if isinstance(value, PerLayer):
        inner = value.values
        if isinstance(inner, Tensor):
            return {"per_layer": _pack(inner, tensors)}
        return {"per_layer_of": {site: _pack(tensor, tensors) for site, tensor in inner.items()}}
    if isinstance(value, BatchField):
        return {"batch_field": value.name}
    if isinstance(value, ModuleCall):
        return {"module": list(value.sites)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"constant": value}
    if isinstance(value, list | tuple) and all(
        item is None or isinstance(item, bool | int | float | str) for item in value
    ):
        return {"constants": list(value)}
    raise InvalidValue(
        f"A binding of type {type(value).__name__} cannot be saved; bind a tensor, number, string or list."
    )


def _unpack(packed: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = packed.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "per_layer":
            return PerLayer(_unpack(value, tensors))
        case "per_layer_of":
            return PerLayer({site: _unpack(inner, tensors) for site, inner in value.items()})
        case "batch_field":
            return BatchField(value)
        case "module":
            return ModuleCall(tuple(value))
        case "constants":
            return tuple(value)
        case "constant":
            return value
    raise InvalidValue(f"Unknown kind of binding {kind!r} in a saved graph; update this package.")


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    head = f"{data.dtype}{tuple(data.shape)}".encode()
    raw = data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
    return hashlib.sha256(head + raw).hexdigest()
