"""Graphs as JSON: functions by name, tensors in a safetensors file beside it, each part with its sha256."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load, save  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from interventions.bindings import Binding, Packed, PackedTarget, digest, unpack
from interventions.errors import FileMissing, InvalidType, InvalidValue, MMNeuronError
from interventions.files import write_atomically
from interventions.graph import Graph, Intervention
from interventions.references import does, intervention_at, reference, refuse_untrusted
from interventions.saved_folds import packed_over, restored_over
from interventions.saved_form import SavedGraph, SavedIntervention, checked_form
from interventions.values import gradient, value_of

FORMAT, VERSION = "intervention-graph", 3
TRUSTED = ("interventions", "mmneuron_lens")


def save_graph(graph: Graph, path: str | Path) -> Path:
    """Write a graph as JSON and, when it binds tensors, a file of the same name with the suffix `.safetensors`.

    - graph: what to save.
    - path: the JSON file; both files are replaced if they are there.

    Returns the path of the JSON file.

    Raises:

    - `InvalidValue`: for a function or a fold that cannot be found again by name (defined in a notebook, a lambda,
      nested, not decorated where it is defined), a bound value that JSON cannot hold, or a path that ends as the
      tensors' file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise InvalidValue(f"{path}: the tensors' file would have this name; give the JSON file, graph.json.")
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
    """Read a saved graph. Loading imports the modules that define its interventions, of `packages` alone.

    Nothing else is imported or called: a function is found by its public name at the top of its module, under one of
    the decorators (`interventions.references`). The checksum tells of damage; it is no signature.

    - path: the JSON file that `save_graph` wrote.
    - packages: names of the top-level packages that may be imported.

    Raises:

    - `FileMissing`: naming the file.
    - `InvalidValue`: naming the file, for another format or version, a file that was changed since, a field of another
      type, a package that is not allowed, or an intervention that is gone.
    - what making the interventions raises, naming the file, the intervention's number and the field: a site, an
      argument or positions that are refused.
    - `InvalidType`: for packages that are one text.
    """
    path = Path(path)
    if isinstance(cast(object, packages), str):
        raise InvalidType(f"packages is a tuple of names, ({packages!r},), not one text.")
    with _naming(path):
        saved = _read(path)
    tensors: dict[str, Tensor] = {}
    if "tensors" in saved:
        beside = path.parent / Path(saved["tensors"]).name
        if beside.name != saved["tensors"] or beside.suffix != ".safetensors":
            raise InvalidValue(f"{path}: tensors is {saved['tensors']!r:.200}, which is no safetensors file beside it.")
        with _naming(beside):
            tensors = _read_tensors(beside, path.name)
    graph: list[Intervention] = []
    for number, entry in enumerate(saved["interventions"]):
        graph.append(_restore(entry, tensors, packages, f"{path}: interventions[{number}]"))
    with _naming(path):
        if unnamed := sorted(
            set(tensors) - {name for entry in saved["interventions"] for name in _tensors_of(entry["bindings"])}
        ):
            raise InvalidValue(f"{saved.get('tensors')} holds {unnamed[0][:12]}, which nothing binds; save it again.")
        return Graph(tuple(graph))


@contextmanager
def _naming(where: object) -> Generator[None]:
    """Begins what is raised inside with a file, or a place in it."""
    try:
        yield
    except MMNeuronError as error:
        raise type(error)(f"{where}: {error}") from error.__cause__


def _content(file: Path, missing: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise FileMissing(f"no such file{missing}") from None
    except (OSError, ValueError) as error:
        # A name that no file can have is a ValueError.
        raise InvalidValue(f"cannot be read ({getattr(error, 'strerror', None) or error}).") from None


def _read(path: Path) -> SavedGraph:
    content = _content(path, "; give the JSON file that save_graph wrote.")
    try:
        document = json.loads(content, object_pairs_hook=_each_once)
        fields = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
        sha256 = fields.pop("sha256", None)
        unchanged = sha256 == _sha256(fields)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"not a saved graph ({error}); give the JSON file that save_graph wrote.") from None
    if fields.get("format") != FORMAT:
        raise InvalidValue(f"not a saved graph (format {fields.get('format')!r:.40}, expected {FORMAT!r}).")
    if fields.get("version") != VERSION:
        raise InvalidValue(f"version {fields.get('version')!r:.40} of saved graphs, not {VERSION}; save it again.")
    if not unchanged:
        raise InvalidValue("was changed since the graph was saved; save it again.")
    return checked_form(fields)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{name!r:.80} stands twice in it")
    return found


def _read_tensors(beside: Path, needed_by: str) -> dict[str, Tensor]:
    content = _content(beside, f", which {needed_by} needs; move both files together.")
    try:
        tensors = load(content)
        digests = {name: digest(tensor) for name, tensor in tensors.items()}
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise InvalidValue(f"no safetensors ({type(error).__name__}: {error}); save the graph again.") from None
    for name, found in digests.items():
        if found != name:
            raise InvalidValue(f"tensor {name[:12]} was changed since the graph was saved; save it again.")
    return tensors


def _sha256(document: Mapping[str, Any]) -> str:
    """Of the document without its own "sha256", as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _describe(intervention: Intervention, tensors: dict[str, Tensor]) -> SavedIntervention:
    function = reference(intervention)
    return {
        "function": function,
        "mode": intervention.mode,
        "sites": list(intervention.sites),
        "over": packed_over(intervention, intervention_at(function).over),
        "name": intervention.name,
        "bindings": {name: value.pack(tensors) for name, value in intervention.bindings.items()},
        "layers": _listed(intervention.layers),
        "positions": _listed(intervention.positions),
        "steps": _listed(intervention.steps),
        "rows": _listed(intervention.rows),
        "all_beams": intervention.all_beams,
    }


def _restore(
    entry: SavedIntervention, tensors: Mapping[str, Tensor], packages: tuple[str, ...], where: str
) -> Intervention:
    made = _found(entry["function"], packages, f"{where}.function")
    for field in ("mode", "over"):
        if field == "over" and entry["over"] and made.over:
            continue
        if entry[field] != getattr(made, field):
            raise InvalidValue(
                f"{where}.{field} is {entry[field]!r}, and {entry['function']} {does(made)}; save the graph again."
            )
    with _naming(f"{where}.over"):
        over = restored_over(entry["over"], made.over, packages)
    bindings = _bindings(entry["bindings"], tensors, packages, where)
    fields: dict[str, Any] = {
        "over": over,
        "sites": tuple(entry["sites"]),
        "layers": _tupled(entry["layers"]),
        "positions": _tupled(entry["positions"]),
        "steps": _tupled(entry["steps"]),
        "rows": _tupled(entry["rows"]),
        "all_beams": entry["all_beams"],
        "bindings": bindings,
    }
    for field, value in fields.items():
        with _naming(f"{where}.{field}"):
            made = replace(made, **{field: value})
    with _naming(f"{where}.name"):
        return made.named(entry["name"])


def _found(function: str, packages: tuple[str, ...], where: str) -> Intervention:
    """The intervention of a name, where its package may be loaded."""
    with _naming(where):
        refuse_untrusted(function, packages)
        return intervention_at(function)


def _bindings(
    saved: Mapping[str, Packed], tensors: Mapping[str, Tensor], packages: tuple[str, ...], where: str
) -> dict[str, Binding]:
    bindings: dict[str, Binding] = {}
    for name, packed in saved.items():
        place = f"{where}.bindings.{name[:80]}"
        with _naming(place):
            match packed:
                case {"value_of": one} if len(packed) == 1:
                    bindings[name] = value_of(one["site"], source=one["source"])
                    continue
                case {"gradient": one} if len(packed) == 1:
                    _refuse_nested(one)
                case _:
                    bindings[name] = unpack(packed, tensors)
                    continue
        target = _found(one["function"], packages, f"{place}.function")
        inner = _bindings(one["bindings"], tensors, packages, place)
        with _naming(place):
            bindings[name] = gradient(replace(target, bindings=inner).at(one["site"]).named(one["name"]))
    return bindings


def _refuse_nested(target: PackedTarget) -> None:
    """Raise `InvalidValue` for a target that is given a gradient itself, however deep they are nested."""
    for name, packed in target["bindings"].items():
        if "gradient" in packed:
            raise InvalidValue(
                f"{target['name']:.80}: {name:.80} is given a gradient; a target takes constants and fields."
            )


def _tensors_of(bindings: Mapping[str, Packed]) -> Generator[str]:
    """Digests of the tensors that are bound."""
    for packed in bindings.values():
        if "gradient" in packed:
            yield from _tensors_of(packed["gradient"]["bindings"])
        several = packed.get("per_layer_of", {}).values()
        inner = [packed["per_layer"]] if "per_layer" in packed else []
        yield from (one["tensor"] for one in (*inner, *several))
        if "tensor" in packed:
            yield packed["tensor"]


def _listed(value: Any) -> Any:
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
