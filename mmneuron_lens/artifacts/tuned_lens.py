"""The tuned lens of one model: an affine map a layer, trained to the final distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from interventions import Intervention, per_layer, tuned_lens
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitted_model import STREAM, HasModel, asked_sites, refuse_other_model
from mmneuron_lens.artifacts.fitting import ROUNDING, refuse_range, refuse_tensor, refuse_unless

TENSORS = ("weight", "bias", "embedding_weight", "embedding_bias", "held_out", "held_out_logit_lens")


@dataclass(frozen=True, eq=False, repr=False)
class TunedLens(Artifact):
    """An affine map a layer, as `fit_tuned_lens` trains it; that of the last layer is the identity.

    - `weight` float32 [layer, hidden, hidden], output by input, `bias` float32 [layer, hidden]; `embedding_weight`
      [hidden, hidden] and `embedding_bias` [hidden] of layer 0.
    - `held_out`, `held_out_logit_lens` float64 [layer + 1], the embedding first: the mean of KL(final || lens) over
      held-out positions, in nats, of this lens and of the logit lens.
    - `model`, `fingerprint`: what it was fitted on. `steps`: of the optimiser. `positions`: seen in them, a position
      once each time. `held_out_positions`: of the held-out batches.
    """

    kind: ClassVar[str] = "tuned lens"

    model: str
    fingerprint: str
    weight: Tensor
    bias: Tensor
    embedding_weight: Tensor
    embedding_bias: Tensor
    held_out: Tensor
    held_out_logit_lens: Tensor
    steps: int
    positions: int
    held_out_positions: int
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def bound(self, lens: HasModel, *, top_k: int = 5, sites: Sequence[str] | str = STREAM) -> Intervention:
        """The read `tuned_lens` with these maps, for `lens.run` here or remote.

        - lens: the `Lens` that it is for
        - top_k: how many tokens
        - sites: "llm.embedding", "llm.residual", or both

        Raises `InvalidValue` for another model than the one it was fitted on, `UnknownName` for another site.
        """
        refuse_other_model("tuned lens", self.model, self.fingerprint, lens)
        asked = asked_sites(sites)
        weights = {"llm.embedding": self.embedding_weight, "llm.residual": self.weight}
        biases = {"llm.embedding": self.embedding_bias, "llm.residual": self.bias}
        weight, bias = (per_layer({site: values[site] for site in asked}) for values in (weights, biases))
        return tuned_lens.at(list(asked)).bind(weight=weight, bias=bias, top_k=top_k)

    def check(self) -> None:
        refuse_tensor("weight", self.weight, torch.float32, "layer", "hidden", self.weight.shape[-1])
        refuse_tensor("bias", self.bias, torch.float32, *self.weight.shape[:2])
        refuse_tensor("embedding_weight", self.embedding_weight, torch.float32, *self.weight.shape[1:])
        refuse_tensor("embedding_bias", self.embedding_bias, torch.float32, self.weight.shape[1])
        for name in ("held_out", "held_out_logit_lens"):
            refuse_tensor(name, getattr(self, name), torch.float64, len(self.weight) + 1)
            refuse_range(name, getattr(self, name), -ROUNDING)
        for name in ("steps", "positions", "held_out_positions"):
            refuse_unless(getattr(self, name) > 0, name, f"is {getattr(self, name)}")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("model", "fingerprint", "steps", "positions", "held_out_positions", "parameters", "provenance")
        return {name: getattr(self, name) for name in TENSORS}, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> TunedLens:
        return cls(**{**metadata, **{name: tensors[name] for name in TENSORS}})
