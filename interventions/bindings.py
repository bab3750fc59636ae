"""Bindings: the arguments of an intervention, of which some exist only when it runs.

Each shows itself in a few characters, packs itself for JSON, says what makes it the same as another, and hands itself
to whoever runs the intervention.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeGuard, cast

import torch
from jaxtyping import Shaped
from torch import Tensor
from typing_extensions import TypedDict

from interventions.errors import InvalidType, InvalidValue, UnknownName
from interventions.sites import SITES, unknown

Plain: TypeAlias = bool | int | float | str | None


class PackedTensor(TypedDict):
    """A tensor in the file beside, by its digest."""

    tensor: str


class PackedSite(TypedDict):
    """A site, None being the one acted at; and whether its value on the source batch is meant."""

    site: str | None
    source: bool


class PackedTarget(TypedDict):
    """A read of one number a row. function: `package.module:function`."""

    function: str
    name: str
    site: str
    bindings: dict[str, Packed]


class Packed(TypedDict, total=False):
    """A binding as JSON: one of these keys. Tensors are named by their digest."""

    tensor: str
    constant: Plain
    constants: list[Plain]
    per_layer: PackedTensor
    per_layer_of: dict[str, PackedTensor]
    batch_field: str
    module: list[str]
    value_of: PackedSite
    gradient: PackedTarget


class Arguments(Protocol):
    """What a runtime collects the arguments of one intervention at one site in."""

    def constant(self, name: str, value: object) -> None:
        """The same value at every layer."""

    def per_layer(self, name: str, values: Shaped[Tensor, "..."]) -> None:
        """A tensor whose first axis is the layer, where the site has layers."""

    def batch_field(self, name: str, field: str) -> None:
        """A field of the batch, by its name."""

    def modules(self, name: str, sites: tuple[str, ...]) -> None:
        """Modules of the model by site, to be applied in this order."""

    def value_of(self, name: str, site: str, source: bool) -> None:
        """The value of a site, in this forward or in that of the source batch."""

    def gradient(self, name: str, target: Any) -> None:
        """The gradient of a target, a read of one number a row."""


class Binding(ABC):
    """One argument of an intervention. Two are equal when their content is."""

    @abstractmethod
    def show(self) -> str:
        """In a few characters: a tensor as its dtype and shape."""

    @abstractmethod
    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        """As JSON; its tensors are added to `tensors` by digest. Raises `InvalidValue` for what JSON cannot hold."""

    @abstractmethod
    def identity(self) -> tuple[Hashable, ...]:
        """Everything that makes two bindings the same; tensors stand for themselves by content."""

    @abstractmethod
    def give(self, name: str, site: str, arguments: Arguments) -> None:
        """Hand over what the argument `name` is at this site."""

    @property
    def keys(self) -> tuple[str, ...] | None:
        """The sites that there is a value for; None where it does not go by site."""
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binding) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(self.identity())


@dataclass(frozen=True, eq=False)
class Constant(Binding):
    """A number, a flag, text, None, or a list of these."""

    value: object

    def show(self) -> str:
        return repr(self.value)

    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        if _is_plain(self.value):
            return {"constant": self.value}
        if _are_plain(self.value):
            return {"constants": list(self.value)}
        raise InvalidValue(
            f"A binding of type {type(self.value).__name__} cannot be saved; bind a tensor, number, string or list."
        )

    def identity(self) -> tuple[Hashable, ...]:
        return ("constant", type(self.value).__name__, repr(self.value))

    def give(self, name: str, site: str, arguments: Arguments) -> None:
        arguments.constant(name, self.value)


@dataclass(frozen=True, eq=False)
class ConstantTensor(Binding):
    """The same tensor at every layer."""

    tensor: Tensor

    def show(self) -> str:
        return _show(self.tensor)

    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        return {"tensor": _keep(self.tensor, tensors)}

    def identity(self) -> tuple[Hashable, ...]:
        return ("tensor", digest(self.tensor))

    def give(self, name: str, site: str, arguments: Arguments) -> None:
        arguments.constant(name, self.tensor)


@dataclass(frozen=True, eq=False)
class PerLayer(Binding):
    """A tensor whose first axis is the layer; or one such tensor per site (no layer axis where the site has none).

    Raises `UnknownName` for a key that is no site, `InvalidType` for what is no tensor, `InvalidValue` for no site.
    """

    values: Tensor | Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if isinstance(self.values, Tensor):
            return
        if not self.values:
            raise InvalidValue("per_layer({}) has no value for any site; give {site: tensor}.")
        for site, tensor in cast("Mapping[object, object]", self.values).items():
            if site not in SITES:
                raise UnknownName(f"per_layer: {unknown('site', str(site), tuple(SITES))}")
            if not isinstance(tensor, Tensor):
                raise InvalidType(f"per_layer: the value for {site} is a tensor, not {type(tensor).__name__}.")

    def at(self, site: str) -> Tensor | None:
        """The tensor for this site, or None when the mapping leaves the site out."""
        return self.values if isinstance(self.values, Tensor) else self.values.get(site)

    @property
    def keys(self) -> tuple[str, ...] | None:
        return None if isinstance(self.values, Tensor) else tuple(self.values)

    def show(self) -> str:
        if isinstance(self.values, Tensor):
            return f"per_layer({_show(self.values)})"
        return f"per_layer({{{', '.join(f'{site}: {_show(tensor)}' for site, tensor in self.values.items())}}})"

    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        if isinstance(self.values, Tensor):
            return {"per_layer": {"tensor": _keep(self.values, tensors)}}
        return {"per_layer_of": {site: {"tensor": _keep(one, tensors)} for site, one in self.values.items()}}

    def identity(self) -> tuple[Hashable, ...]:
        if isinstance(self.values, Tensor):
            return ("per layer", digest(self.values))
        return ("per layer", *sorted((site, digest(tensor)) for site, tensor in self.values.items()))

    def give(self, name: str, site: str, arguments: Arguments) -> None:
        values = self.at(site)
        assert values is not None, f"{site} is left out; ask for its keys first"
        arguments.per_layer(name, values)


@dataclass(frozen=True, eq=False)
class BatchField(Binding):
    """A field of the batch (`weight`, `kind`, or the user's own) in the axes of the site."""

    name: str

    def show(self) -> str:
        return f"field {self.name}"

    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        return {"batch_field": self.name}

    def identity(self) -> tuple[Hashable, ...]:
        return ("batch field", self.name)

    def give(self, name: str, site: str, arguments: Arguments) -> None:
        arguments.batch_field(name, self.name)


@dataclass(frozen=True, eq=False)
class ModuleCall(Binding):
    """Modules of the model applied one after the other: a callable of one tensor."""

    sites: tuple[str, ...]

    def show(self) -> str:
        return f"module({', '.join(self.sites)})"

    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        return {"module": list(self.sites)}

    def identity(self) -> tuple[Hashable, ...]:
        return ("module", *self.sites)

    def give(self, name: str, site: str, arguments: Arguments) -> None:
        arguments.modules(name, self.sites)


def binding(value: object) -> Binding:
    """What stands for a value given to `Intervention.bind`: a binding itself, a tensor, or a constant."""
    if isinstance(value, Binding):
        return value
    return ConstantTensor(value) if isinstance(value, Tensor) else Constant(value)


def unpack(packed: Packed, tensors: Mapping[str, Tensor]) -> Binding:
    """The binding that `pack` made this of.

    Raises `InvalidValue` for a kind of a later version, or none or several, and for a tensor that is not there,
    `UnknownName` for a module that is no site, and what making the binding raises.
    """
    if len(packed) != 1:
        raise InvalidValue(f"A binding in a saved graph is of one kind, not {' and '.join(packed) or 'none'}.")
    match packed:
        case {"tensor": name}:
            return ConstantTensor(_kept(name, tensors))
        case {"per_layer": inner}:
            return PerLayer(_kept(inner["tensor"], tensors))
        case {"per_layer_of": several}:
            return PerLayer({site: _kept(inner["tensor"], tensors) for site, inner in several.items()})
        case {"batch_field": name}:
            return BatchField(name)
        case {"module": sites}:
            for site in sites:
                if site not in SITES:
                    raise UnknownName(f"module: {unknown('site', site, tuple(SITES))}")
            return module(*sites)
        case {"constants": values}:
            return Constant(tuple(values))
        case {"constant": value}:
            return Constant(value)
        case _:
            kind = next(iter(packed), None)
            raise InvalidValue(f"Unknown kind of binding {kind!r} in a saved graph; update this package.")


def digest(tensor: Shaped[Tensor, "..."]) -> str:
    """The sha256, in hexadecimal, of a tensor's dtype, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    head = f"{data.dtype}{tuple(data.shape)}".encode()
    raw = data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
    return hashlib.sha256(head + raw).hexdigest()


def _show(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"


def _keep(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = digest(tensor)
    tensors[name] = tensor.detach().cpu().contiguous()
    return name


def _kept(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise InvalidValue(f"tensor {name[:12]!r} is not in the file beside; save the graph again.")
    return tensors[name]


def _is_plain(value: object) -> TypeGuard[Plain]:
    return value is None or isinstance(value, bool | int | float | str)


def _are_plain(value: object) -> TypeGuard[list[Plain]]:
    return isinstance(value, list | tuple) and all(map(_is_plain, cast("list[object]", value)))


def per_layer(values: Shaped[Tensor, "layer ..."] | Mapping[str, Tensor]) -> PerLayer:
    """Bind a different value at each layer.

    At a site without layers (`projector.act`) the tensor is passed whole. With a mapping, the intervention acts at
    those sites of its globs that are keys; a site that `at` names must be a key, and a key a site where it acts.

    - values: a tensor `[layer, ...]`, or one such tensor by site.

    Raises:

    - `UnknownName`: for a key that is no site.
    - `InvalidType`: for what is no tensor.
    - `InvalidValue`: for a mapping without a key.
    """
    if isinstance(values, Tensor):
        return PerLayer(values)
    if not isinstance(cast(object, values), Mapping):
        raise InvalidType(f"per_layer takes a tensor, or one by site, not {type(values).__name__}.")
    return PerLayer(dict(values))


def batch_field(name: str) -> BatchField:
    """Bind a field of the batch.

    - name: `"weight"`, int64 `[*where]`: how often a position counts, 0 for padding; `"kind"`, bool `[*where, kind]`:
      one-hot, in the order of `GROUP_KINDS`; `"sample"`, int64 `[*where]`: which sample a position belongs to, padding
      too; `"position"`, int64 `[*where]`: its index within that sample; or one of your own, added with
      `batch.with_fields(name=tensor)`.

    A sample is a row of `lens.encode`, or a row of images of `lens.pack`, counted from 0 over the batches of a run; or
    what `batch.with_samples([17, 18])` calls it. With a number for each prompt of `lens.pack`, a sample is a prompt,
    and what a row's prompts share is of the first. `position` is:

    - at sites of the language model, how many real tokens the row has before it, generated ones and questions packed
      behind one another included; where `lens.pack` makes a row per prompt, of that row. Where a sample is a prompt,
      how many that prompt has before it.
    - in the vision tower, `tile * positions of a tile + place in the tile`, CLS included, with the tiles of a sample's
      images counted through; where a tower has no tiles, the patch, with those of the sample's images counted through.
    - at a projector of patches, likewise with the positions of a tile that it has; where it runs once a prompt, of that
      prompt's images. At one of queries and at `qformer.query.act`, the query; at `qformer.text.act`, the word.

    The position of padding is -1.
    """
    return BatchField(name)


def module(*sites: str) -> ModuleCall:
    """Bind modules of the model as one callable: `module("llm.norm", "llm.unembed")` is the logit lens.

    - sites: names of sites without layers; their modules are applied in this order.

    Raises:

    - `InvalidType`: for no site at all.
    """
    if not sites:
        raise InvalidType('module() needs at least one site name, e.g. module("llm.norm", "llm.unembed").')
    return ModuleCall(sites)
