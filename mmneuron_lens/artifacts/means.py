"""The mean activation of every neuron: what mean ablation puts in its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_tensor


@dataclass(frozen=True, eq=False, repr=False)
class Means(Artifact):
    """`values[site]`: float64 [layer, neuron], [neuron] at a site without layers; over all positions."""

    kind: ClassVar[str] = "means"

    model: str
    values: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        for site, values in self.values.items():
            refuse_tensor(site, values, torch.float64, *("layer", "neuron")[-max(values.ndim, 1) :])

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.values, {"model": self.model, "provenance": self.provenance}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Means:
        return cls(metadata["model"], tensors, metadata["provenance"])
