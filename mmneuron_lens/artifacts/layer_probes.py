"""Layer probes: how well the domain of a question is read off each layer by a linear classifier (not in the paper)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless

LAST, IMAGE = "last", "image"
PLACES = (LAST, IMAGE)
"""What of a layer is read: the state at the prompt's last position, and the mean over image positions."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerProbes(Artifact):
    """Cross-validated linear probes of the residual stream, and the same on shuffled labels.

    - `classes`: the domains. `samples`, `labels`: the id and the domain of every question.
    - `right`: bool [place, layer, question], whether a question was classified right by a probe that had not seen it;
      places in the order of `PLACES`, layer 0 is the embedding.
    - `shuffled`: float64 [place, layer, shuffle], the accuracy of probes of shuffled labels, in [0, 1].
    """

    kind: ClassVar[str] = "layer-probes"

    model: str
    classes: tuple[str, ...]
    samples: tuple[str, ...]
    labels: tuple[str, ...]
    right: Tensor
    shuffled: Tensor
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def accuracy(self) -> Float64[Tensor, "place layer"]:
        """In [0, 1]."""
        return self.right.double().mean(-1)

    def selectivity(self) -> Float64[Tensor, "place layer"]:
        """The accuracy less the mean accuracy on shuffled labels."""
        return self.accuracy() - self.shuffled.mean(-1)

    def check(self) -> None:
        number, layers = len(self.labels), self.right.shape[1] if self.right.ndim == 3 else "layer"
        refuse_unless(number > 0, "labels", "are of no question")
        refuse_unless(len(self.samples) == number, "samples", f"are {len(self.samples)} of {number} labels")
        strange = sorted({*self.labels} - {*self.classes})
        refuse_unless(not strange, "labels", f"hold {strange[:1]}, which is no class")
        refuse_tensor("right", self.right, torch.bool, len(PLACES), "layer", number)
        refuse_tensor("shuffled", self.shuffled, torch.float64, len(PLACES), layers, "shuffle")
        refuse_unless(self.shuffled.shape[-1] > 0, "shuffled", "has no shuffle")
        refuse_range("shuffled", self.shuffled, 0, 1)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("model", "classes", "samples", "labels", "parameters", "provenance")
        return {"right": self.right, "shuffled": self.shuffled}, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> LayerProbes:
        lists = {name: tuple(metadata[name]) for name in ("classes", "samples", "labels")}
        own: dict[str, Any] = {**metadata, **lists, **tensors}
        return cls(**own)
