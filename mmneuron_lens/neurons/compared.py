"""Compared sets: the most specific neurons of each method, domain and size, and random ones matched to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.comparison import DRAWN, OFF
from mmneuron_lens.neurons.selectors.registry import Scores, top_share

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of each module's neurons at which methods are compared."""

STRENGTHS = (-1.0, 0.0, 1.0, 2.0, 3.0)
"""Strengths of a dose-response: activations are multiplied by 1 + strength. Source: HONES (arXiv 2604.17941)."""

SHARED = 0.25
"""Sets share their random draws where all of them together are at most this share of every module."""

Masks = Mapping[str, Bool[Tensor, "layer neuron"]]


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons that are changed together; see `Compared` of `artifacts.comparison` for what is not a mask.

    - masks: bool [layer, neuron] by site, one row at sites without layers.
    """

    method: str
    domain: str
    fraction: float
    masks: Masks
    wanted: dict[str, int] = field(default_factory=dict[str, int])
    strength: float = OFF
    draw: int = 0
    draws: tuple[int, ...] = ()
    taken: int = 0

    @property
    def neurons(self) -> dict[str, int]:
        """How many there are, by site."""
        return {site: int(mask.sum()) for site, mask in self.masks.items()}


def chosen_sets(
    scores: Mapping[str, Scores], domains: Sequence[str], fractions: Iterable[float] = FRACTIONS
) -> list[NeuronSet]:
    """The `round(fraction * all)` neurons of each module that score highest for each domain, method by method.

    - scores: by method, float64 [layer, neuron, domain] by site.
    - domains: along the last axis.

    Where a method has fewer, there are as many as it has. Raises `InvalidValue` for a fraction outside (0, 1], one that
    comes twice, or none.
    """
    fractions = list(fractions)
    if not fractions or len(set(fractions)) < len(fractions) or not all(0 < one <= 1 for one in fractions):
        raise InvalidValue(f"fractions are {fractions}; give one or more, each once, above 0 and at most 1.")
    made: list[NeuronSet] = []
    for method, by_site in scores.items():
        wanted = {
            fraction: {site: round(fraction * score[..., 0].numel()) for site, score in by_site.items()}
            for fraction in fractions
        }
        for fraction in fractions:
            for number, domain in enumerate(domains):
                masks = {site: top_share(score[..., number], fraction) for site, score in by_site.items()}
                made.append(NeuronSet(method, domain, fraction, masks, wanted[fraction]))
    return made


def with_draws(sets: Sequence[NeuronSet], draws: int = 5, seed: int = 0) -> list[NeuronSet]:
    """The sets, each with the places of its random draws, and behind them the draws.

    A draw has as many neurons in each module, drawn without replacement, none of which is in a set that it is matched
    to, unless too few others are left: then these are all in it, and `taken` says how many of the set are. Sets of one
    fraction and of like numbers share draws, all of them or those of one domain, where together they are at most
    `SHARED` of every module; so no draw avoids so much that those left are of another sort.
    """
    placed, drawn = list(sets), list[NeuronSet]()
    for together in _groups(sets):
        first = sets[together[0]]
        union = _union([sets[place].masks for place in together])
        domains = {sets[place].domain for place in together}
        places = []
        for draw in range(1, draws + 1):
            generator = torch.Generator().manual_seed(_seed(seed, draw, first.fraction, first.neurons, union))
            masks = {site: _drawn(union[site], first.neurons[site], generator) for site in union}
            taken = sum(int((masks[site] & union[site]).sum()) for site in union)
            domain = first.domain if len(domains) == 1 else ""
            places.append(len(sets) + len(drawn))
            drawn.append(NeuronSet(DRAWN, domain, first.fraction, masks, draw=draw, taken=taken))
        for place in together:
            placed[place] = replace(sets[place], draws=tuple(places))
    return placed + drawn


def with_strengths(
    sets: Sequence[NeuronSet], strengths: Iterable[float] = STRENGTHS, fractions: Iterable[float] = (0.01,)
) -> list[NeuronSet]:
    """The sets, and behind them those of these fractions again at each other strength, draws matched likewise."""
    made, fractions = list(sets), set(fractions)
    again = [place for place, one in enumerate(sets) if one.fraction in fractions]
    for strength in strengths:
        if strength == OFF:
            continue
        where = {place: len(made) + number for number, place in enumerate(again)}
        made += [
            replace(sets[place], strength=strength, draws=tuple(where[draw] for draw in sets[place].draws))
            for place in again
        ]
    return made


def _groups(sets: Sequence[NeuronSet]) -> list[list[int]]:
    """Places of sets that share their draws."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, one in enumerate(sets):
        alike.setdefault((one.fraction, *sorted(one.neurons.items())), []).append(place)
    made: list[list[int]] = []
    for places in alike.values():
        if _few(sets, places):
            made.append(places)
            continue
        for domain in dict.fromkeys(sets[place].domain for place in places):
            own = [place for place in places if sets[place].domain == domain]
            made += [own] if _few(sets, own) else [[place] for place in own]
    return made


def _few(sets: Sequence[NeuronSet], places: Sequence[int]) -> bool:
    union = _union([sets[place].masks for place in places])
    return all(int(mask.sum()) <= SHARED * mask.numel() for mask in union.values())


def _union(masks: Sequence[Masks]) -> dict[str, Tensor]:
    return {site: torch.stack([one[site] for one in masks]).any(0) for site in masks[0]}


def _drawn(avoided: Bool[Tensor, "layer neuron"], count: int, generator: torch.Generator) -> Bool[Tensor, "..."]:
    flat = avoided.flatten()
    order = torch.randperm(flat.numel(), generator=generator, device="cpu")
    # Those to be avoided come last.
    order = order[flat[order].to(torch.int8).sort(stable=True).indices]
    mask = torch.zeros_like(flat)
    mask[order[:count]] = True
    return mask.view_as(avoided)


def _seed(seed: int, draw: int, fraction: float, neurons: Mapping[str, int], union: Masks) -> int:
    digest = hashlib.sha256(f"{seed} {draw} {fraction} {sorted(neurons.items())}".encode())
    for site in sorted(union):
        digest.update(union[site].numpy().tobytes())
    return int.from_bytes(digest.digest()[:7], "big")
