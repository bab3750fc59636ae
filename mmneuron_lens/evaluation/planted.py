"""PlantedCheck: whether the comparison finds neurons that are known to matter, and no others."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.artifacts.short_repr import short_repr
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.evaluation.beyond_random import measured
from mmneuron_lens.evaluation.comparison_claims import matters

IMPORTANT, IDLE = "important", "idle"
"""How sets of planted neurons begin: those that raise the answers, and those that write nothing."""

PLANTED = "planted"
"""The domain of planted neurons and of the questions that they are tried on."""


@dataclass(frozen=True, eq=False)
class PlantedCheck:
    """What a comparison said of sets of neurons whose weights were written: `comparison`, a method a set."""

    comparison: NeuronComparison

    def __repr__(self) -> str:
        return short_repr(self)

    def to_frame(self) -> pl.DataFrame:
        """A row per set: model, set, kind ("important", "idle"), neurons, change, difference, low, high (nats; the
        difference is to as many random neurons, with its 95 % interval), verdict.
        """
        rows = []
        for name in self.comparison.methods:
            (place,) = (number for number, one in enumerate(self.comparison.conditions) if one.method == name)
            one = self.comparison.conditions[place]
            found = matters(self.comparison, name, PLANTED, one.fraction)
            told = {"model": self.comparison.model, "set": name, "kind": name.split()[0]}
            told |= {"neurons": sum(one.neurons.values())}
            told |= {"change": float(measured(self.comparison, place, PLANTED).mean())}
            told |= {"difference": found.value, "low": found.low, "high": found.high, "verdict": found.verdict}
            rows.append(told)
        return pl.DataFrame(rows)

    @property
    def recall(self) -> float:
        """The share of the sets that matter of which it was said that they do."""
        return self._said(IMPORTANT)

    @property
    def false_alarms(self) -> float:
        """The share of the idle sets of which it was said that they matter."""
        return self._said(IDLE)

    def _said(self, kind: str) -> float:
        verdicts = self.to_frame().filter(pl.col("kind") == kind)["verdict"]
        return sum(one == "holds" for one in verdicts) / len(verdicts)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())
