"""Discovery: the decoder, lists of alike blocks and activation modules of any model, found in its modules alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interventions.errors import InvalidValue
from mmneuron_lens.architectures.architecture import Architecture

NEURON_FREE = (torch.nn.MultiheadAttention, torch.nn.Softmax, torch.nn.Softmax2d, torch.nn.LogSoftmax, torch.nn.Softmin)
"""What torch keeps among its activation functions that makes no neurons."""


@dataclass(frozen=True)
class Discovered:
    """What was found in a model; paths have `{l}` for the place in a list of blocks.

    - decoder: of the language model's body; head: of what makes logits
    - blocks: lists of blocks of one class, by path, with how many there are
    - activations: by path the class, of activation modules
    - layers: by path of an activation module, in which of its blocks it stands; () outside of lists
    """

    decoder: str
    head: str
    blocks: Mapping[str, int]
    activations: Mapping[str, str]
    layers: Mapping[str, tuple[int, ...]]

    def paths(self, pattern: str) -> list[str]:
        """The modules that a path of `activations` stands for."""
        return [pattern.format(l=layer) for layer in self.layers[pattern]] or [pattern]

    def in_decoder(self, path: str) -> bool:
        """Whether a module lies in the language model's body."""
        return path.startswith(f"{self.decoder}.")


def discover(module: torch.nn.Module) -> Discovered:
    """What a transformers model is made of; reads no weights, so that it works on the meta device.

    Finds what is a module: an activation function that a forward calls as a function has no place to read.
    Raises `InvalidValue` for a model without a decoder or an unembedding.
    """
    names = {id(one): name for name, one in module.named_modules()}
    lists = {
        name: len(one)
        for name, one in module.named_modules()
        if isinstance(one, torch.nn.ModuleList) and len(one) and len({type(block) for block in one}) == 1
    }
    found: dict[str, str] = {}
    layers: dict[str, tuple[int, ...]] = {}
    for name, one in module.named_modules(remove_duplicate=False):
        if is_activation(one):
            pattern, layer = pattern_of(name, lists)
            found[pattern] = type(one).__name__
            layers[pattern] = (*layers.get(pattern, ()), *(() if layer is None else (layer,)))
    return Discovered(
        decoder=names[id(decoder_of(module))],
        head=_named(names, module, "get_output_embeddings"),
        blocks={f"{name}.{{l}}": count for name, count in lists.items()},
        activations=found,
        layers=layers,
    )


def is_activation(module: torch.nn.Module) -> bool:
    """Whether a module is an activation function: one of transformers' or of torch's."""
    homes = {kind.__module__ for kind in type(module).__mro__}
    listed = bool({"transformers.activations", "torch.nn.modules.activation"} & homes)
    return listed and not isinstance(module, NEURON_FREE)


def pattern_of(name: str, lists: Mapping[str, int]) -> tuple[str, int | None]:
    """A path with `{l}` in place of its number in the outermost list of alike blocks, and that number."""
    parts = name.split(".")
    for place in range(1, len(parts)):
        if ".".join(parts[:place]) in lists:
            return ".".join([*parts[:place], "{l}", *parts[place + 1 :]]), int(parts[place])
    return name, None


def decoder_of(module: torch.nn.Module) -> torch.nn.Module:
    """The body of the language model. Raises `InvalidValue` for a model that names none."""
    found: Any = module
    while callable(getattr(found, "get_decoder", None)):
        inner = found.get_decoder()
        if inner is None or inner is found:
            break
        found = inner
    if found is module:
        raise InvalidValue(f"{type(module).__name__} names no decoder (get_decoder), so its language model is unknown.")
    return found


def named(found: Discovered, architecture: Architecture) -> dict[str, str]:
    """The site of every activation module, by path; "" for those without one."""
    sites = {
        path: site for site, place in architecture.places.items() if place.at == "output" for _, path in place.paths()
    }
    made: dict[str, str] = {}
    for pattern in found.activations:
        own = {sites.get(path, "") for path in found.paths(pattern)}
        made[pattern] = own.pop() if len(own) == 1 else ""
    return made


def misplaced(found: Discovered, architecture: Architecture) -> str:
    """Which site of neurons is not at activation modules of its own, or lies on the wrong side of the language
    model; empty where all are in order.
    """
    activations = {path for pattern in found.activations for path in found.paths(pattern)}
    taken: dict[str, str] = {}
    for site, place in architecture.places.items():
        for _, path in place.paths():
            inside = found.in_decoder(path) or path in (found.decoder, found.head)
            if inside != site.startswith("llm."):
                return f"{site} is at {path!r}, which is {'in' if inside else 'outside'} the language model"
            if not site.endswith(".act"):
                continue
            if path not in activations:
                return f"{site} is at {path!r}, which is no activation module"
            if path in taken:
                return f"{site} is at {path!r}, and so is {taken[path]}"
            taken[path] = site
    return ""


def _named(names: Mapping[int, str], module: Any, getter: str) -> str:
    found = getattr(module, getter)()
    if found is None:
        raise InvalidValue(f"{type(module).__name__} names no unembedding ({getter}).")
    return names[id(found)]
