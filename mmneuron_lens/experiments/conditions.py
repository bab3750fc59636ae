"""Conditions: which neurons are off while questions are asked, and how."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from interventions import Graph, mean_ablate_neurons, per_layer, scale_neurons
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM
from mmneuron_lens.artifacts.selection import Selection, in_order, module_of, neurons_off, sites_of
from mmneuron_lens.neurons.selection import random_like

Match = Literal["module", "layer"]
"""What random neurons match in number: the module (the paper), or every layer."""


@dataclass(frozen=True, eq=False)
class Off:
    """How neurons are switched off.

    - how: "zero" (the paper), "mean" (held at their mean), or "scale" (multiplied by a factor).
    - factor: for "scale".
    - means: for "mean", by site what `mean_activations` returns.

    Raises `InvalidValue` for another way, or without means.
    """

    how: Literal["zero", "mean", "scale"] = "zero"
    factor: float = 0.0
    means: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.how not in ("zero", "mean", "scale"):
            raise InvalidValue(f"no way {self.how!r} to switch neurons; choose from zero, mean, scale.")
        if self.how == "mean" and self.means is None:
            raise InvalidValue("mean ablation needs the means; give means=mean_activations(lens, samples_by_domain).")

    @property
    def described(self) -> str:
        """For parameters: "zero", "scale 2.0", or "mean" with the first of the sha256 of the means."""
        if self.how == "scale":
            return f"scale {float(self.factor)}"
        return self.how if self.means is None or self.how == "zero" else f"mean {tensors_digest(self.means)[:12]}"

    def graph(self, masks: Mapping[str, Tensor], layerless: Sequence[str] = ()) -> Graph:
        """A graph that switches these neurons at every position and step.

        - masks: bool [layer, neuron] by site, one row at sites that are `layerless`.
        """
        if self.how == "zero":
            return neurons_off(masks, layerless)
        bound = {site: mask[0] if site in layerless else mask for site, mask in masks.items()}
        if self.how == "scale":
            return Graph((scale_neurons.at(list(bound)).bind(neurons=per_layer(bound), factor=float(self.factor)),))
        means = per_layer({site: (self.means or {})[site] for site in bound})
        return Graph((mean_ablate_neurons.at(list(bound)).bind(neurons=per_layer(bound), mean=means),))


@dataclass(frozen=True)
class Condition:
    """Which neurons are off: a graph, and the names it goes by in tables.

    - digest: of the neurons and of how they are switched.
    """

    module: str
    condition: str
    neurons_of: str
    graph: Graph = field(compare=False)
    digest: str = ""


def modules_of(selection: Selection) -> tuple[str, ...]:
    """The modules of the paper that a selection has, in the order of its tables."""
    return tuple(dict.fromkeys(map(module_of, in_order(selection.masks))))


def conditions_of(
    selection: Selection,
    domain: str,
    *,
    modules: Sequence[str] = (ALL,),
    random_draws: int = 3,
    seed: int = 0,
    match: Match = "module",
    off: Off | None = None,
    controls: Sequence[str] | None = None,
    cross: bool = False,
) -> list[Condition]:
    """The conditions under which a domain's questions are asked, "none" first.

    - modules: "All", or modules of the paper, each giving its own conditions.
    - random_draws: draw k is `random_like` with the seed `1000 * seed + k`, matched in every site by `match`, never a
      neuron selected for any domain.
    - controls: those of `modules` that random draws and other domains are tried in; all of them unless given.
    - cross: also the neurons of each other domain.

    Raises `UnknownName` with the choices for an unknown domain or module, `InvalidValue` where too few are free.
    """
    off, layerless = off or Off(), selection.layerless

    def condition(module: str, name: str, neurons_of: str, masks: dict[str, Tensor]) -> Condition:
        digest = hashlib.sha256(f"{off.described} {tensors_digest(masks)}".encode()).hexdigest()
        return Condition(module, name, neurons_of, off.graph(masks, layerless), digest)

    made = [Condition("None", NONE, "", Graph())]
    controlled = [module for module in modules if controls is None or module in controls]
    index = selection.domains.index(domain) if domain in selection.domains else -1
    for module in modules:
        chosen = None if module == ALL else module
        made.append(condition(module, DOMAIN, domain, selection.neurons(domain, chosen)))
        for draw in range(1, (random_draws if module in controlled else 0) + 1):
            masks = {
                site: random_like(selection.masks[site], 1000 * seed + draw, match)[..., index]
                for site in sites_of(selection.masks, chosen)
            }
            made.append(condition(module, f"{RANDOM} {draw}", domain, masks))
    others = [other for other in selection.domains if other != domain] if cross else []
    for module in controlled:
        chosen = None if module == ALL else module
        made += [condition(module, DOMAIN, other, selection.neurons(other, chosen)) for other in others]
    return made


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of named tensors: names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
