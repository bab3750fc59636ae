"""How much more often selected neurons are active in their own domain than in the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import polars as pl
import torch
from torch import Tensor
from typing_extensions import TypedDict

from interventions.errors import UnknownName
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.selection import groups_of, in_order, module_of
from mmneuron_lens.artifacts.short_repr import unreachable_of
from mmneuron_lens.artifacts.table_html import table_html


class Interval(TypedDict):
    """A number and the ends of its 95 % interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


class Effect(TypedDict):
    """The effect in a module, at a site, or everywhere.

    - memberships: of selected neurons in domains; a neuron of two domains counts twice.
    - log_odds, difference: medians over them; natural logarithm, and share of tokens.
    - held_out: the median log-odds of neurons selected in one half of the data, measured in the other.
    - above: the share of memberships whose whole interval is above the minimum; None without memberships or intervals.
    """

    memberships: int
    log_odds: Interval
    difference: Interval
    held_out: Interval
    above: float | None


@dataclass(frozen=True, eq=False, repr=False)
class EffectSizes(Artifact):
    """Effect sizes of the memberships of a selection, by site, and their medians.

    - `members[site]`: int64 [membership, 3]: layer, neuron, and the domain's place in `domains`.
    - `measured[site]`: float64 [membership, 4]: log-odds in the domain against the rest, both ends of its 95 % interval
      (NaN where a domain has fewer than two buckets), and the difference of the probabilities.
    - `effects`: medians, by the paper's module, by site where a module has several, and "All".
    - `minimum`: the log-odds that `Effect.above` asks for.
    """

    kind: ClassVar[str] = "effect-sizes"
    undefined: ClassVar[tuple[str, ...]] = ("measured/",)

    model: str
    domains: tuple[str, ...]
    members: dict[str, Tensor]
    measured: dict[str, Tensor]
    effects: dict[str, Effect]
    minimum: float
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        medians = {name: one["log_odds"]["value"] for name, one in self.effects.items()}
        shown = [f"model={self.model!r}", f"domains={self.domains}", f"log_odds={medians}", *unreachable_of(self)]
        return f"EffectSizes({', '.join(shown)})"

    @property
    def reachability(self) -> Reachability:
        """Which layers can reach the logits."""
        return Reachability.of(self.provenance)

    def effect(self, group: str = "All") -> Effect:
        """The medians of a group: a module, a site of several, or "All". Raises `UnknownName` with the choices."""
        if group not in self.effects:
            raise UnknownName(f"no effect of {group!r}; choose from {', '.join(self.effects)}.")
        return self.effects[group]

    def reachable(self, group: str = "All") -> int | None:
        """How many memberships of a group are of neurons that can reach the logits; None where that is not known."""
        known = self.reachability
        sites = [site for site in self.members if group in ("All", site, module_of(site))]
        counted = [layer not in known.layers(site) for site in sites for layer in self.members[site][:, 0].tolist()]
        return sum(counted) if known.known else None

    def check(self) -> None:
        for site, members in self.members.items():
            refuse_tensor(f"members/{site}", members, torch.int64, "membership", 3)
            refuse_tensor(f"measured/{site}", self.measured[site], torch.float64, len(members), 4)
            refuse_range(f"members/{site}", members, 0)
            refuse_range(f"members/{site}, domain", members[:, 2], 0, len(self.domains) - 1)
        for group, sites in groups_of(self.members).items():
            one, held = self.effects[group], sum(len(self.members[site]) for site in sites)
            problem = f"is {one['memberships']}, and its sites have {held}"
            refuse_unless(one["memberships"] == held, f"effects, {group}, memberships", problem)
            share = one["above"] is None or 0 <= one["above"] <= 1
            refuse_unless(share, f"effects, {group}, above", f"is {one['above']!r:.40}, no share")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"members/{site}": value for site, value in self.members.items()}
        tensors |= {f"measured/{site}": value for site, value in self.measured.items()}
        names = ("model", "domains", "effects", "minimum", "provenance")
        return tensors, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> EffectSizes:
        sites = in_order({name.split("/", 1)[1] for name in tensors})
        members = {site: tensors[f"members/{site}"] for site in sites}
        measured = {site: tensors[f"measured/{site}"] for site in sites}
        effects = {group: metadata["effects"][group] for group in groups_of(sites)}
        own = cast(Any, {**metadata, "domains": tuple(metadata["domains"]), "effects": effects})
        return cls(**own, members=members, measured=measured)

    def to_frame(self) -> pl.DataFrame:
        """A row per membership: model, module, site, layer, neuron, domain, log_odds, low, high, difference, and
        reaches_logits, null where that is not known.
        """
        known = self.reachability
        rows = [
            {"model": self.model, "module": module_of(site), "site": site, "layer": layer, "neuron": neuron}
            | {"domain": self.domains[domain]}
            | dict(zip(("log_odds", "low", "high", "difference"), numbers, strict=True))
            | {"reaches_logits": known.reaches(site, layer)}
            for site, members in self.members.items()
            for (layer, neuron, domain), numbers in zip(
                cast(Any, members).tolist(), cast(Any, self.measured[site]).tolist(), strict=True
            )
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())
