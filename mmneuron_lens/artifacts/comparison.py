"""Comparison: what switching off the neurons of several methods does to each question, beside random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import polars as pl
import torch
from torch import Tensor

from interventions.errors import UnknownName
from interventions.sites import unknown
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_tensor, refuse_types, refuse_unless
from mmneuron_lens.artifacts.table_html import table_html

DRAWN = "random"
"""The method of conditions that are draws of random neurons."""

OFF = -1.0
"""The strength at which neurons are off: activations are multiplied by 1 + strength."""


@dataclass(frozen=True)
class Compared:
    """One condition under which questions were asked.

    - method: that chose the neurons, or "random" for a draw.
    - domain: whose neurons they are; "" for a draw that is matched to those of several domains.
    - fraction: of each module's neurons that was asked for. neurons: how many there are, by site; wanted: how many
      the fraction comes to, where the method has fewer.
    - strength: activations were multiplied by 1 + strength; -1 is off.
    - draw: its number, from 1; 0 for neurons of a method.
    - draws: of neurons of a method, the places among the conditions of the draws matched to them.
    - taken: of a draw, how many of its neurons a method had chosen too, because too few others were left.
    """

    method: str
    domain: str
    fraction: float
    neurons: dict[str, int]
    wanted: dict[str, int] = field(default_factory=dict[str, int])
    strength: float = OFF
    draw: int = 0
    draws: tuple[int, ...] = ()
    taken: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class NeuronComparison(Artifact):
    """Every question of one model under every condition that it was asked under.

    - `conditions`; `questions`: (domain, id) of each.
    - `before`: float32 [question], nats: the log-probability of the answer with no neuron changed.
    - `change`: float32 [condition, question], nats: by how much that rises; NaN where a question was not asked.
    - `deviation`: float32 [condition, question]: how far the last hidden state moves at the prompt, a share of its
      norm; NaN likewise.
    - `right_before`: float32 [question], `right`: float32 [condition, question]: 1 where the generated answer is right,
      0 where not, NaN where none was generated.
    - `overlaps`: rows of method, other, domain, fraction, shared, either: neurons that two methods both choose, and
      that at least one does. Of "half" as the other: the same method on two halves of the data.
    """

    kind: ClassVar[str] = "comparison"
    undefined: ClassVar[tuple[str, ...]] = ("change", "deviation", "right")

    model: str
    domains: tuple[str, ...]
    methods: tuple[str, ...]
    conditions: tuple[Compared, ...]
    questions: tuple[tuple[str, str], ...]
    before: Tensor
    change: Tensor
    deviation: Tensor
    right_before: Tensor
    right: Tensor
    overlaps: tuple[dict[str, Any], ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def fractions(self) -> tuple[float, ...]:
        return tuple(sorted({one.fraction for one in self.conditions}))

    def place(self, method: str, domain: str, fraction: float, strength: float = OFF) -> int:
        """Where the condition of a method's neurons of a domain stands. Raises `UnknownName` with the choices."""
        wanted = (method, domain, fraction, strength)
        found = {
            (one.method, one.domain, one.fraction, one.strength): number
            for number, one in enumerate(self.conditions)
            if one.draw == 0
        }
        if wanted not in found:
            own = ["/".join(map(str, one)) for one in found]
            raise UnknownName(unknown("condition", "/".join(map(str, wanted)), own))
        return found[wanted]

    def asked(self, domain: str) -> list[int]:
        """The places of a domain's questions."""
        return [number for number, (own, _) in enumerate(self.questions) if own == domain]

    def check(self) -> None:
        conditions, questions = len(self.conditions), len(self.questions)
        refuse_unless(len(set(self.questions)) == questions, "questions", "name one of them twice")
        strange = {domain for domain, _ in self.questions} - {*self.domains}
        refuse_unless(not strange, "questions", f"are of {sorted(strange)}, which is no domain of it")
        for name in ("before", "right_before"):
            refuse_tensor(name, getattr(self, name), torch.float32, questions)
        for name in ("change", "deviation", "right"):
            refuse_tensor(name, getattr(self, name), torch.float32, conditions, questions)
        together = torch.equal(self.change.isnan(), self.deviation.isnan())
        refuse_unless(together, "change", "and deviation are of other questions")
        refuse_unless(not bool((self.before > 1e-4).any()), "before", "has log-probabilities above 0")
        refuse_unless(not bool((self.deviation < 0).any()), "deviation", "has values below 0")
        for name in ("right_before", "right"):
            value = getattr(self, name)
            refuse_unless(bool((value.isnan() | (value == 0) | (value == 1)).all()), name, "has values beside 0 and 1")
        for number, one in enumerate(self.conditions):
            refuse_types(one)
            self._check_condition(f"conditions.{number}", one)
        for row in self.overlaps:
            refuse_unless(0 <= row["shared"] <= row["either"], "overlaps", "share more neurons than there are")

    def _check_condition(self, name: str, one: Compared) -> None:
        refuse_unless(0 < one.fraction <= 1, f"{name}.fraction", f"is {one.fraction}, outside (0, 1]")
        refuse_unless(one.draw >= 0 and (one.draw > 0) == (one.method == DRAWN), f"{name}.draw", "is not its method's")
        own = one.method in self.methods and one.domain in self.domains
        refuse_unless(one.draw > 0 or own, f"{name}.method", f"{one.method!r} of {one.domain!r} was not compared")
        negative = min([*one.neurons.values(), *one.wanted.values(), one.taken, 0]) < 0
        refuse_unless(not negative, f"{name}.neurons", "are fewer than 0")
        for place in one.draws:
            there = 0 <= place < len(self.conditions)
            refuse_unless(there, f"{name}.draws", f"name {place} of {len(self.conditions)} conditions")
            other = self.conditions[place]
            alike = other.draw > 0 and other.neurons == one.neurons and other.strength == one.strength
            refuse_unless(alike, f"{name}.draws", f"name {place}, which is not matched to it")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: getattr(self, name) for name in ("before", "change", "deviation", "right_before", "right")}
        names = ("model", "domains", "methods", "questions", "overlaps", "parameters", "provenance")
        told = {name: getattr(self, name) for name in names}
        return tensors, {**told, "conditions": [asdict(one) for one in self.conditions]}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> NeuronComparison:
        own: dict[str, Any] = {
            "domains": tuple(metadata["domains"]),
            "methods": tuple(metadata["methods"]),
            "conditions": tuple(Compared(**{**one, "draws": tuple(one["draws"])}) for one in metadata["conditions"]),
            "questions": tuple((domain, name) for domain, name in metadata["questions"]),
            "overlaps": tuple(metadata["overlaps"]),
            **tensors,
        }
        return cls(**{**metadata, **own})

    def to_frame(self) -> pl.DataFrame:
        """A row per condition and question that was asked under it: model, method, neurons_of, fraction, strength,
        draw, neurons (of all sites), domain, id, before, change, deviation, right (null where not generated).
        """
        rows = [row for number in range(len(self.conditions)) for row in self._rows(number)]
        return pl.DataFrame(rows, schema=FRAME, orient="row")

    def _rows(self, number: int) -> Sequence[Mapping[str, Any]]:
        one = self.conditions[number]
        told = {"model": self.model, "method": one.method, "neurons_of": one.domain, "fraction": one.fraction}
        told |= {"strength": one.strength, "draw": one.draw, "neurons": sum(one.neurons.values())}
        return [
            told
            | {"domain": domain, "id": name, "before": float(self.before[place])}
            | {"change": float(self.change[number, place]), "deviation": float(self.deviation[number, place])}
            | {"right": None if bool(self.right[number, place].isnan()) else float(self.right[number, place])}
            for place, (domain, name) in enumerate(self.questions)
            if not bool(self.change[number, place].isnan())
        ]

    def _repr_html_(self) -> str:
        return table_html(self.to_frame().head(50))


FRAME: dict[str, Any] = {
    **dict.fromkeys(("model", "method", "neurons_of"), pl.String()),
    **{"fraction": pl.Float64(), "strength": pl.Float64(), "draw": pl.Int64(), "neurons": pl.Int64()},
    **dict.fromkeys(("domain", "id"), pl.String()),
    **dict.fromkeys(("before", "change", "deviation", "right"), pl.Float64()),
}
"""Columns of `NeuronComparison.to_frame`."""
