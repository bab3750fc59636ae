"""How far the last hidden state of every question moves when neurons are off (Table 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import UnknownName
from mmneuron_lens.artifacts.answers import RANDOM
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless

MEASURES = ("after norm", "before norm", "last position")
"""Where the hidden state is compared; the paper's is the first."""


BY_LAYER = f"{RANDOM} by layer"
"""Draws that match the number of neurons in every layer, not only in the module."""


@dataclass(frozen=True, eq=False, repr=False)
class Deviations(Artifact):
    """The deviation of every question of one domain under every condition.

    - `values[measure]`: float64 [condition, sample], shares of the undisturbed norm (0.1 is the paper's 10 %).
    - `conditions`: (module, condition) in order; condition is "domain", "random 1", "random by layer 1", ...
    """

    kind: ClassVar[str] = "deviations"

    model: str
    domain: str
    conditions: tuple[tuple[str, str], ...]
    samples: tuple[str, ...]
    values: dict[str, Tensor]
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def of(self, module: str, condition: str, measure: str = MEASURES[0]) -> Float[Tensor, " sample"]:
        """Every question's deviation with the neurons of a module off; the mean over draws for "random".

        - module, condition: of `conditions`; of draws without their number. measure: a key of `values`.

        Raises `KeyError` naming the choices.
        """
        found = [
            self.values[measure][number]
            for number, (place, name) in enumerate(self.conditions)
            if place == module and (name == condition or name.rpartition(" ")[0] == condition)
        ]
        if not found:
            choices = ", ".join(f"{place}/{name}" for place, name in self.conditions)
            raise UnknownName(f"no deviation of {module}/{condition}; choose from {choices}.")
        return torch.stack(found).mean(0)

    def check(self) -> None:
        refuse_unless({*self.values} == {*MEASURES}, "values", f"are of {sorted(self.values)}, not of {MEASURES}")
        for measure, values in self.values.items():
            refuse_tensor(measure, values, torch.float64, len(self.conditions), len(self.samples))
            refuse_range(measure, values, 0)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("model", "domain", "conditions", "samples", "parameters", "provenance")
        return self.values, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Deviations:
        own: dict[str, Any] = {
            "conditions": tuple((module, condition) for module, condition in metadata["conditions"]),
            "samples": tuple(metadata["samples"]),
        }
        return cls(**{**metadata, **own}, values=tensors)
