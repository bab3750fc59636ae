"""An intervention: a pure typed function of the value at a site, and where it acts."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interventions.bindings import BatchField, ModuleCall, PerLayer
from interventions.errors import InvalidType, InvalidValue
from interventions.sites import GROUP_KINDS, SITES, is_glob, matching, unknown

if TYPE_CHECKING:
    from interventions.graph import Graph

Mode = Literal["reads", "writes", "rewires"]
Over = Literal["sum", "mean", "list"]
Positions = None | str | tuple[int, ...] | tuple[str, int | None, int | None, int | None]
POSITION_KINDS = tuple(dict.fromkeys(kind for kinds in GROUP_KINDS.values() for kind in kinds))
STEPS = ("prompt", "generated", "all")


@dataclass(frozen=True, eq=False)
class Intervention:
    """A function of a value at some sites. Calling it calls the function, so it also works on bare tensors.

    Made by `reads`, `writes` and `rewires`; narrowed by `at`, renamed by `named`, completed by `bind`;
    joined with `|`. Frozen: each of these returns a new one.
    """

    function: Callable[..., Any]
    mode: Mode
    sites: tuple[str, ...]
    over: Over | None = None
    name: str = ""
    bindings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    positions: Positions = None
    steps: str | tuple[int, ...] | None = None
    all_beams: bool = False

    def __post_init__(self) -> None:
        # The function's own documentation and signature show through in help(), in notebooks and in editors.
        for attribute in ("__module__", "__qualname__", "__doc__"):
            object.__setattr__(self, attribute, getattr(self.function, attribute, None))
        object.__setattr__(self, "__wrapped__", self.function)
        object.__setattr__(self, "name", self.name or self.function.__name__)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)

    def bind(self, **bindings: Any) -> Intervention:
        """Give arguments of the function: constants, `per_layer(...)`, `batch_field(...)`, `module(...)`."""
        names = self.parameters
        for name in bindings:
            if name not in names:
                raise InvalidType(f"{self.name}: {unknown('argument', name, names)}")
        return replace(self, bindings={**self.bindings, **bindings})

    def at(
        self,
        site: str | Iterable[str] | None = None,
        *,
        layers: int | Iterable[int] | slice | None = None,
        positions: int | str | slice | Iterable[int] | None = None,
        steps: int | str | Iterable[int] | None = None,
        all_beams: bool | None = None,
    ) -> Intervention:
        """Narrow where it acts; what is left out stays as it is.

        site: a site name, a glob (`"*.act"`), or several of them.
        layers: indices, negative ones from the end.
        positions: token indices of the padded batch (prompts are padded on the left, so -1 is the last
            token of every row), a slice, or a kind (`"image"`, `"text"`, `"generated"`, `"cls"`, ...).
        steps: `"prompt"`, `"generated"`, `"all"`, or indices of forward passes (0 is the prompt).
            Unset, writes act on every step and reads on the prompt.
        all_beams: a read sees every beam's row at every step, as a raw hook would.
        """
        changes: dict[str, Any] = {}
        if site is not None:
            changes["sites"] = _sites((site,) if isinstance(site, str) else tuple(site))
        if layers is not None:
            changes["layers"] = _indices("layers", layers)
        if positions is not None:
            changes["positions"] = _positions(positions)
        if steps is not None:
            changes["steps"] = _steps(steps)
        if all_beams is not None:
            changes["all_beams"] = all_beams
        return replace(self, **changes)

    def named(self, name: str) -> Intervention:
        """The same intervention under another name: its results come back as `out[name, site]`."""
        return replace(self, name=name)

    def __or__(self, other: Intervention | Graph) -> Graph:
        from interventions.graph import Graph

        return Graph((self,)) | other

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the function's arguments after the value (and, for a rewire, the source)."""
        skipped = 2 if self.mode == "rewires" else 1
        return tuple(inspect.signature(self.function).parameters)[skipped:]

    @property
    def missing(self) -> tuple[str, ...]:
        """Arguments without a default that nothing is bound to."""
        parameters = inspect.signature(self.function).parameters
        return tuple(
            name
            for name in self.parameters
            if name not in self.bindings and parameters[name].default is inspect.Parameter.empty
        )

    @property
    def where(self) -> str:
        """One phrase that says which layers, positions and steps it is narrowed to."""
        parts = []
        if self.layers is not None:
            parts.append(f"layers {', '.join(map(str, self.layers))}")
        if self.positions is not None:
            parts.append(f"positions {_show_positions(self.positions)}")
        if self.steps is not None:
            parts.append(f"steps {self.steps if isinstance(self.steps, str) else ', '.join(map(str, self.steps))}")
        if self.all_beams:
            parts.append("all beams")
        return "; ".join(parts)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={show_binding(value)}" for name, value in self.bindings.items())
        missing = "".join(f", {name}=?" for name in self.missing).removeprefix("" if shown else ", ")
        over = f" over={self.over}" if self.over else ""
        where = f" [{self.where}]" if self.where else ""
        return f"{self.mode} {self.name}({shown}{missing}){over} at {', '.join(self.sites)}{where}"

    def identity(self) -> tuple[Any, ...]:
        """Everything that makes two interventions the same; tensors stand for themselves by content."""
        return (
            self.function,
            self.mode,
            self.sites,
            self.over,
            self.name,
            tuple(sorted((name, _content(value)) for name, value in self.bindings.items())),
            self.layers,
            self.positions,
            self.steps,
            self.all_beams,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(self.identity())


def reads(*sites: str, over: Over, **bindings: Any) -> Callable[[Callable[..., Any]], Intervention]:
    """Make a function of a site's value into a read: it returns a tensor, or a dict of tensors.

    over: how the batches' results become one. `"sum"` adds them. `"mean"` expects `(sum, weight)` from the
    function and divides once at the end. `"list"` keeps a Python list with one item per batch.
    """
    if over not in ("sum", "mean", "list"):
        raise InvalidValue(unknown("over", str(over), ["sum", "mean", "list"]))
    return _decorator("reads", sites, over, bindings)


def writes(*sites: str, **bindings: Any) -> Callable[[Callable[..., Any]], Intervention]:
    """Make a function of a site's value into a write: it returns a new value of the same shape."""
    return _decorator("writes", sites, None, bindings)


def rewires(*sites: str, **bindings: Any) -> Callable[[Callable[..., Any]], Intervention]:
    """Make a function of `(value, source)` into a rewire: a write that is also given the value which the
    same site and layer had on a paired source batch (`lens.run(graph, batches, sources=...)`).
    """
    return _decorator("rewires", sites, None, bindings)


def _decorator(
    mode: Mode, sites: tuple[str, ...], over: Over | None, bindings: dict[str, Any]
) -> Callable[[Callable[..., Any]], Intervention]:
    if not sites or callable(sites[0]):
        raise InvalidType(
            f'@{mode} names at least one site, e.g. @{mode}("llm.mlp.act"{", over=..." if over else ""}).'
        )
    checked = _sites(sites)

    def decorate(function: Callable[..., Any]) -> Intervention:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InvalidType(f"{function.__name__}: *{parameter.name} cannot be bound; name each argument.")
        return Intervention(function, mode, checked, over).bind(**bindings)

    return decorate


def _sites(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        matching(pattern, tuple(SITES))
    return patterns


def named_sites(patterns: tuple[str, ...], available: tuple[str, ...]) -> tuple[str, ...]:
    """The sites of one architecture that these names and globs mean, in forward order, each once."""
    found: set[str] = set()
    for pattern in patterns:
        found.update(
            [name for name in matching(pattern, tuple(SITES)) if name in available]
            if is_glob(pattern)
            else matching(pattern, available)
        )
    return tuple(name for name in available if name in found)


def _indices(what: str, value: int | Iterable[int] | slice) -> tuple[int, ...]:
    if isinstance(value, slice):
        raise InvalidType(f"{what} takes indices, not a slice: write {what}=range({value.start or 0}, n).")
    return (value,) if isinstance(value, int) else tuple(int(index) for index in value)


def _positions(value: int | str | slice | Iterable[int]) -> Positions:
    if isinstance(value, str):
        if value not in POSITION_KINDS:
            raise InvalidValue(unknown("kind of position", value, POSITION_KINDS))
        return value
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    return _indices("positions", value)


def _show_positions(positions: Positions) -> str:
    if isinstance(positions, tuple) and positions and positions[0] == "slice":
        return ":".join("" if part is None else str(part) for part in positions[1:]).removesuffix(":")
    return positions if isinstance(positions, str) else ", ".join(map(str, positions or ()))


def _steps(value: int | str | Iterable[int]) -> str | tuple[int, ...]:
    if isinstance(value, str):
        if value not in STEPS:
            raise InvalidValue(unknown("steps", value, STEPS))
        return value
    return _indices("steps", value)


def show_binding(value: Any) -> str:
    """A binding in a few characters: a tensor as its dtype and shape."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, PerLayer):
        inner = value.values
        if isinstance(inner, Tensor):
            return f"per_layer({show_binding(inner)})"
        return f"per_layer({{{', '.join(f'{site}: {show_binding(tensor)}' for site, tensor in inner.items())}}})"
    if isinstance(value, BatchField):
        return f"field {value.name}"
    if isinstance(value, ModuleCall):
        return f"module({', '.join(value.sites)})"
    return repr(value)


def _content(value: Any) -> Any:
    """A hashable stand-in: tensors by dtype, shape and the hash of their bytes."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        raw = data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
        return ("tensor", str(data.dtype), tuple(data.shape), hashlib.sha256(raw).hexdigest())
    if isinstance(value, PerLayer):
        inner = value.values
        if isinstance(inner, Tensor):
            return ("per_layer", _content(inner))
        return ("per_layer", tuple(sorted((site, _content(tensor)) for site, tensor in inner.items())))
    return (type(value).__name__, repr(value))
