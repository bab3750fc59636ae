"""The domain-specific neurons of one model, by site, and what they become as a graph."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import polars as pl
import torch
from jaxtyping import Bool
from torch import Tensor

from interventions import SITES, Graph, per_layer, zero_neurons
from interventions.errors import UnknownName
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import ROUNDING, refuse_range, refuse_tensor, refuse_unless
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.table_html import table_html

MODULES = {
    "vision.mlp.act": "Vision Encoder",
    "projector.act": "MLP Projector",
    "qformer.query.act": "Q-Former",
    "qformer.text.act": "Q-Former",
    "llm.mlp.act": "LLM",
}
"""The paper's name of the module each site belongs to, in the order of its tables."""


@dataclass(frozen=True, eq=False, repr=False)
class Selection(Artifact):
    """The domain-specific neurons of one model, by site.

    - `masks[site]`: bool [layer, neuron, domain]; `entropy[site]`: float64 [layer, neuron], nats, NaN if never active;
      `probability[site]`: float64 [layer, neuron, domain]; `tokens[site]`: int64 [domain].
    - `threshold[site]`, `requested[site]`: what the rule came to.
    - `scores[site]`: float64 [layer, neuron, domain], by what the method ranked, NaN where it never takes a neuron; {}
      for the published method, whose entropy and probability say it all, and in files of versions before.
    - `parameters`: method, fraction, percentile, kinds by site; the method's own under "parameters".
    - `provenance`: what the domains share, and "domains".
    - `reachability`: which layers can reach the logits; neurons of the others are selected too, as in the paper.
    """

    kind: ClassVar[str] = "selection"
    undefined: ClassVar[tuple[str, ...]] = ("entropy/", "scores/")

    model: str
    domains: tuple[str, ...]
    masks: dict[str, Tensor]
    entropy: dict[str, Tensor]
    probability: dict[str, Tensor]
    tokens: dict[str, Tensor]
    threshold: dict[str, float]
    requested: dict[str, int]
    parameters: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])
    scores: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def selected(self, site: str) -> int:
        """How many neurons of the site were selected, each once however many domains it belongs to."""
        return int(self.masks[site].any(dim=-1).sum())

    @property
    def reachability(self) -> Reachability:
        """Which layers can reach the logits, as the model's architecture said when they were counted."""
        return Reachability.of(self.provenance)

    def reachable(self, site: str | None = None, domain: str | None = None) -> int | None:
        """How many of the selected neurons can reach the logits; None where that is not known.

        - site: a site or a module of the paper; all of them unless given. domain: its neurons only.

        Raises `UnknownName` naming the choices.
        """
        masks = (
            {name: self.masks[name].any(dim=-1) for name in sites_of(self.masks, site)}
            if domain is None
            else self.neurons(domain, site)
        )
        known = self.reachability
        found = sum(int(mask[known.mask(name, len(mask))].sum()) for name, mask in masks.items())
        return found if known.known else None

    def shortfall(self, site: str) -> int:
        """How many neurons of the site fewer than requested survived the threshold."""
        return self.requested[site] - self.selected(site)

    def neurons(self, domain: str, site: str | None = None) -> dict[str, Bool[Tensor, "layer neuron"]]:
        """The neurons of a domain, by site: of one site, of one module of the paper, or of all (None).

        Raises `KeyError` naming the choices for an unknown domain or site.
        """
        if domain not in self.domains:
            raise UnknownName(f"no domain {domain!r} in this selection; choose from {', '.join(self.domains)}.")
        index = self.domains.index(domain)
        return {name: self.masks[name][..., index] for name in sites_of(self.masks, site)}

    def off(self, domain: str, site: str | None = None) -> Graph:
        """A graph that holds a domain's neurons at zero, at every position and step, for `lens.run(graph | ...)`.

        Those that cannot reach the logits are among them, as in the paper, and change no answer; see `reachable`.

        - domain: one of `domains`.
        - site: a site or a module of the paper; all of them unless given.

        Raises `UnknownName` with the choices.
        """
        return neurons_off(self.neurons(domain, site), self.layerless)

    @property
    def layerless(self) -> tuple[str, ...]:
        """The sites whose one row is the whole module, not a layer of several."""
        return tuple(site for site in self.masks if not SITES[site].per_layer)

    def check(self) -> None:
        domains = len(self.domains)
        refuse_unless(len(set(self.domains)) == domains, "domains", f"repeat a name: {self.domains!r:.80}")
        refuse_unless(self.threshold.keys() == self.requested.keys(), "threshold", "names other sites than requested")
        for site, mask in self.masks.items():
            refuse_tensor(f"masks/{site}", mask, torch.bool, "layer", "neuron", domains)
            refuse_tensor(f"probability/{site}", self.probability[site], torch.float64, *mask.shape)
            refuse_tensor(f"entropy/{site}", self.entropy[site], torch.float64, *mask.shape[:2])
            refuse_tensor(f"tokens/{site}", self.tokens[site], torch.int64, domains)
            refuse_range(f"probability/{site}", self.probability[site], 0, 1)
            refuse_range(f"entropy/{site}", self.entropy[site], -ROUNDING, math.log(max(domains, 1)) + ROUNDING)
            refuse_range(f"tokens/{site}", self.tokens[site], 0)
            refuse_unless(self.requested[site] >= 0, f"requested {site}", f"is {self.requested[site]}")
        for site, scores in self.scores.items():
            refuse_unless(site in self.masks, f"scores/{site}", "is of a site without neurons")
            refuse_tensor(f"scores/{site}", scores, torch.float64, *self.masks[site].shape)
            refuse_unless(not bool(scores.isinf().any()), f"scores/{site}", "has infinite values")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("masks", "entropy", "probability", "tokens", "scores")
        tensors = {f"{name}/{site}": value for name in names for site, value in getattr(self, name).items()}
        names = ("model", "domains", "threshold", "requested", "parameters", "provenance")
        return tensors, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Selection:
        by_site: dict[str, dict[str, Tensor]] = {"masks": {}, "entropy": {}, "probability": {}, "tokens": {}}
        for site in in_order(metadata["requested"]):
            for name, values in by_site.items():
                values[site] = tensors[f"{name}/{site}"]
        scores = {site: tensors[f"scores/{site}"] for site in by_site["masks"] if f"scores/{site}" in tensors}
        own: dict[str, Any] = {**metadata, "domains": tuple(metadata["domains"]), **by_site, "scores": scores}
        return cls(**own)

    def to_frame(self) -> pl.DataFrame:
        """A row per selected neuron, in the order of site, layer and neuron: model, module, site, layer, neuron,
        domains (those it belongs to), entropy, `p_DOMAIN` (its activation probability in each), and reaches_logits,
        null where that is not known.

        Beside counts, `neurons.table.neuron_table` says more of each, and of neurons that were not selected.
        """
        frames = [self._neurons_at(site) for site in self.masks]
        return pl.concat(frames) if frames else pl.DataFrame()

    def _neurons_at(self, site: str) -> pl.DataFrame:
        chosen = self.masks[site].any(dim=-1)
        layers, neurons = (cast("list[int]", one.tolist()) for one in chosen.nonzero().unbind(1))  # pyright: ignore[reportUnknownMemberType]
        belongs = cast("list[list[bool]]", self.masks[site][chosen].tolist())  # pyright: ignore[reportUnknownMemberType]
        known, names = self.reachability, probability_columns(self.domains)
        probability = self.probability[site][chosen].numpy()
        columns: dict[str, Any] = {
            "model": pl.Series([self.model] * len(layers), dtype=pl.String),
            "module": pl.Series([module_of(site)] * len(layers), dtype=pl.String),
            "site": pl.Series([site] * len(layers), dtype=pl.String),
            "layer": pl.Series(layers, dtype=pl.Int64),
            "neuron": pl.Series(neurons, dtype=pl.Int64),
            "domains": pl.Series(
                [[one for one, here in zip(self.domains, row, strict=True) if here] for row in belongs],
                dtype=pl.List(pl.String),
            ),
            "entropy": pl.Series(self.entropy[site][chosen].numpy(), dtype=pl.Float64),
            **{names[domain]: probability[:, number] for number, domain in enumerate(self.domains)},
            "reaches_logits": pl.Series([known.reaches(site, layer) for layer in layers], dtype=pl.Boolean),
        }
        return pl.DataFrame(columns)

    def summary(self) -> pl.DataFrame:
        """A row per site and domain: model, module, site, domain, neurons (of the domain), selected, requested, and
        reachable: how many of `neurons` can reach the logits, null where that is not known.
        """
        return pl.DataFrame(
            [
                {"model": self.model, "module": module_of(site), "site": site, "domain": domain}
                | {"neurons": int(mask[..., number].sum()), "selected": self.selected(site)}
                | {"requested": self.requested[site], "reachable": self.reachable(site, domain)}
                for site, mask in self.masks.items()
                for number, domain in enumerate(self.domains)
            ],
            schema_overrides={"reachable": pl.Int64},
        )

    def _repr_html_(self) -> str:
        return table_html(self.summary())


def probability_columns(domains: Sequence[str]) -> dict[str, str]:
    """By domain, the column of a table with a neuron's activation probability there; no two are called alike."""
    return {domain: f"p_{domain}" for domain in domains}


def neurons_off(masks: Mapping[str, Tensor], layerless: Collection[str] = ()) -> Graph:
    """A graph that holds these neurons at zero. masks: bool [layer, neuron] by site, one row where `layerless`."""
    bound = {site: mask[0] if site in layerless else mask for site, mask in masks.items()}
    return Graph((zero_neurons.at(list(bound)).bind(neurons=per_layer(bound)),))


def module_of(site: str) -> str:
    """The paper's name of the module a site belongs to; a site the paper does not have keeps its own name."""
    return MODULES.get(site, site)


def in_order(sites: Iterable[str]) -> list[str]:
    """Sites in the order of the paper's tables, others after them by name."""
    known = list(MODULES)
    return sorted(sites, key=lambda site: (known.index(site) if site in MODULES else len(known), site))


def groups_of(sites: Iterable[str]) -> dict[str, list[str]]:
    """The rows of a table by module, and the sites of each: every module, its sites where it has several, and "All"."""
    ordered = in_order(sites)
    groups: dict[str, list[str]] = {}
    for module in dict.fromkeys(map(module_of, ordered)):
        own = sites_of(ordered, module)
        groups |= {module: own} | ({site: [site] for site in own} if len(own) > 1 else {})
    return groups | {"All": ordered}


def sites_of(sites: Iterable[str], chosen: str | None) -> list[str]:
    """The sites meant by a site, a module of the paper, or None (all); `KeyError` names the choices."""
    sites = in_order(sites)
    found = [site for site in sites if chosen is None or chosen in (site, module_of(site))]
    if not found:
        choices = dict.fromkeys([*sites, *map(module_of, sites)])
        raise UnknownName(f"no site or module {chosen!r}; choose from {', '.join(choices)}.")
    return found
