"""Neuron effects: what switching off single neurons does to the right answers of one domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import polars as pl
import torch
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless
from mmneuron_lens.artifacts.selection import module_of
from mmneuron_lens.artifacts.table_html import table_html


@dataclass(frozen=True, eq=False, repr=False)
class NeuronEffects(Artifact):
    """The change of the log-probability of every question's right answer with one neuron held at zero.

    - `members`: int64 [neuron, 3], the site's place in `sites`, layer and index.
    - `drawn`: bool [neuron], whether it was drawn at random, to compare with.
    - `change`: float64 [neuron, question], in nats; below zero where the answer becomes less likely.
    - `plain`: float64 [question], the answers' log-probability with nothing off.
    - `samples`: the ids of the questions.
    """

    kind: ClassVar[str] = "neuron-effects"

    model: str
    domain: str
    sites: tuple[str, ...]
    samples: tuple[str, ...]
    members: Tensor
    drawn: Tensor
    change: Tensor
    plain: Tensor
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        neurons, questions = len(self.members), len(self.samples)
        refuse_tensor("members", self.members, torch.int64, neurons, 3)
        refuse_range("members", self.members, 0)
        refuse_range("members, site", self.members[:, 0], 0, len(self.sites) - 1)
        refuse_unless(len(self.members.unique(dim=0)) == neurons, "members", "repeat a neuron")
        refuse_tensor("drawn", self.drawn, torch.bool, neurons)
        refuse_tensor("change", self.change, torch.float64, neurons, questions)
        refuse_tensor("plain", self.plain, torch.float64, questions)
        refuse_unless(bool((self.plain <= 0).all()), "plain", "has values above 0, which is no log-probability")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: getattr(self, name) for name in ("members", "drawn", "change", "plain")}
        names = ("model", "domain", "sites", "samples", "parameters", "provenance")
        return tensors, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> NeuronEffects:
        own: dict[str, Any] = {name: tuple(metadata[name]) for name in ("sites", "samples")}
        return cls(**{**metadata, **own, **tensors})

    def to_frame(self) -> pl.DataFrame:
        """A row per neuron: model, domain, module, site, layer, neuron, drawn, change (the mean over questions)."""
        rows = cast("list[tuple[int, int, int]]", self.members.tolist())
        sites = [self.sites[site] for site, _, _ in rows]
        return pl.DataFrame(
            {
                "model": pl.Series([self.model] * len(rows), dtype=pl.String),
                "domain": pl.Series([self.domain] * len(rows), dtype=pl.String),
                "module": pl.Series(map(module_of, sites), dtype=pl.String),
                "site": pl.Series(sites, dtype=pl.String),
                "layer": pl.Series([layer for _, layer, _ in rows], dtype=pl.Int64),
                "neuron": pl.Series([neuron for _, _, neuron in rows], dtype=pl.Int64),
                "drawn": self.drawn.numpy(),
                "change": self.change.mean(1).numpy(),
            }
        )

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())
