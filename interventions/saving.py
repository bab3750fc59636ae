"""Graphs as JSON: functions by name, tensors in a safetensors file beside it, each part with its sha256."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from safetensors import SafetensorError
from safetensors.torch import load, save  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from interventions.bindings import Packed, digest, unpack
from interventions.errors import FileMissing, InvalidValue, MMNeuronError
from interventions.files import write_atomically
from interventions.graph import Graph, Intervention, Mode, Over
from interventions.narrowing import Positions, Steps

FORMAT, VERSION = "intervention-graph", 2
TRUSTED = ("interventions", "mmneuron_lens")


class SavedIntervention(TypedDict):
    """One intervention as JSON, where tuples are lists. function: `package.module:function`."""

    function: str
    mode: Mode
    sites: list[str]
    over: Over | None
    name: str
    bindings: dict[str, Packed]
    layers: tuple[int, ...] | None
    positions: Positions
    steps: Steps | None
    all_beams: bool


class SavedGraph(TypedDict):
    """A graph as JSON. tensors: the name of the safetensors file beside it, where one is needed."""

    format: str
    version: int
    interventions: list[SavedIntervention]
    tensors: NotRequired[str]


def save_graph(graph: Graph, path: str | Path) -> Path:
    """Write a graph as JSON and, when it binds tensors, a file of the same name with the suffix `.safetensors`.

    - graph: what to save.
    - path: the JSON file; both files are replaced if they are there.

    Returns the path of the JSON file.

    Raises:

    - `InvalidValue`: for a function that cannot be found again by name (defined in a notebook, a lambda, nested), or a
      bound value that JSON cannot hold.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    document: SavedGraph = {
        "format": FORMAT,
        "version": VERSION,
        "interventions": [_describe(intervention, tensors) for intervention in graph],
    }
    if tensors:
        document["tensors"] = path.with_suffix(".safetensors").name
        write_atomically(path.with_suffix(".safetensors"), save(tensors))
    write_atomically(path, json.dumps({**document, "sha256": _sha256(document)}, indent=1))
    return path


def load_graph(path: str | Path, packages: tuple[str, ...] = TRUSTED) -> Graph:
    """Read a saved graph. Loading imports the modules its functions live in, so only `packages` are allowed.

    - path: the JSON file that `save_graph` wrote.
    - packages: names of the top-level packages that may be imported.

    Raises:

    - `FileMissing`: naming the file.
    - `InvalidValue`: naming the file, for another format or version, a file that was changed since, a package that is
      not allowed, or a function that is gone.
    - what making the interventions raises, naming the file: a site, an argument or positions that are refused.
    """
    path = Path(path)
    saved = _read(path)
    tensors: dict[str, Tensor] = {}
    if "tensors" in saved:
        tensors = _read_tensors(path, path.parent / Path(saved["tensors"]).name)
    try:
        return Graph(tuple(_restore(entry, tensors, packages, path) for entry in saved["interventions"]))
    except MMNeuronError as error:
        said = str(error)
        raise type(error)(said if said.startswith(f"{path}: ") else f"{path}: {said}") from None


def _read(path: Path) -> SavedGraph:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileMissing(f"{path}: no such file; give the JSON file that save_graph wrote.") from None
    except ValueError as error:
        raise InvalidValue(f"{path}: not a saved graph ({error}); give the JSON file that save_graph wrote.") from None
    fields = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    if fields.get("format") != FORMAT:
        raise InvalidValue(f"{path}: not a saved graph (format {fields.get('format')!r}, expected {FORMAT!r}).")
    if fields.get("version") != VERSION:
        raise InvalidValue(f"{path}: version {fields.get('version')} of saved graphs, not {VERSION}; save it again.")
    if fields.pop("sha256", None) != _sha256(fields):
        raise InvalidValue(f"{path}: was changed since the graph was saved; save it again.")
    return cast("SavedGraph", fields)


def _read_tensors(path: Path, beside: Path) -> dict[str, Tensor]:
    try:
        tensors = load(beside.read_bytes())
    except FileNotFoundError:
        raise FileMissing(f"{beside}: no such file, which {path.name} needs; move both files together.") from None
    except SafetensorError as error:
        raise InvalidValue(f"{beside}: no safetensors ({error}); save the graph again.") from None
    for name, tensor in tensors.items():
        if digest(tensor) != name:
            raise InvalidValue(f"{beside}: tensor {name[:12]} was changed since the graph was saved; save it again.")
    return tensors


def _sha256(document: Mapping[str, Any]) -> str:
    """Of the document without its own "sha256", as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def reference(intervention: Intervention) -> str:
    """`package.module:function`, or `InvalidValue` with the cure where the function has no such name."""
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


def _describe(intervention: Intervention, tensors: dict[str, Tensor]) -> SavedIntervention:
    return {
        "function": reference(intervention),
        "mode": intervention.mode,
        "sites": list(intervention.sites),
        "over": intervention.over,
        "name": intervention.name,
        "bindings": {name: value.pack(tensors) for name, value in intervention.bindings.items()},
        "layers": intervention.layers,
        "positions": intervention.positions,
        "steps": intervention.steps,
        "all_beams": intervention.all_beams,
    }


def _restore(
    entry: SavedIntervention, tensors: Mapping[str, Tensor], packages: tuple[str, ...], path: Path
) -> Intervention:
    module, _, name = entry["function"].partition(":")
    if module.split(".")[0] not in packages:
        raise InvalidValue(
            f"{path}: {entry['function']} is outside the packages that may be loaded ({', '.join(packages)}). "
            f"If you trust this file: load_graph(path, packages=(..., {module.split('.')[0]!r}))."
        )
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise InvalidValue(f"{path}: {module} has no function {name!r}; was it renamed?")
    return Intervention(
        function=getattr(found, "function", found),
        mode=entry["mode"],
        sites=tuple(entry["sites"]),
        over=entry["over"],
        name=entry["name"],
        bindings={key: unpack(packed, tensors) for key, packed in entry["bindings"].items()},
        layers=_tupled(entry["layers"]),
        positions=_tupled(entry["positions"]),
        steps=_tupled(entry["steps"]),
        all_beams=entry["all_beams"],
    )


def _tupled(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
