"""The vision encoder's embedding of every image (Figure 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_tensor

MEAN_OVER = "mean over"
"""The parameter that says what each vector is the mean of, where the vision encoder pools nothing."""


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings(Artifact):
    """`vectors`: float32 [image, hidden], one an image; `domain_of`: the domain of each."""

    kind: ClassVar[str] = "embeddings"

    model: str
    vectors: Tensor
    domain_of: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        refuse_tensor("vectors", self.vectors, torch.float32, len(self.domain_of), "hidden")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        own = ("model", "domain_of", "parameters", "provenance")
        return {"vectors": self.vectors}, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Embeddings:
        return cls(**{**metadata, "domain_of": tuple(metadata["domain_of"]), **tensors})
