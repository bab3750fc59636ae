"""The Jacobian lens of one model: the mean Jacobian from every layer to the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from interventions import Intervention, jacobian_entropy, jacobian_lens, per_layer
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitted_model import STREAM, HasModel, asked_sites, refuse_other_model
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless


@dataclass(frozen=True, eq=False, repr=False)
class JacobianLens(Artifact):
    """The mean Jacobian from every layer to the last, as `fit_jacobian_lens` makes it.

    - `jacobian` float32 [layer, hidden, hidden], output by input; `embedding` float32 [hidden, hidden], from layer 0.
    - `error` float64 [layer + 1], the embedding first: the standard error over prompts, as a share of the matrix in the
      Frobenius norm; NaN where there are too few prompts to tell.
    - `model`, `fingerprint`: what it was fitted on. `prompts`, `positions`: on how many.
    """

    kind: ClassVar[str] = "jacobian lens"
    undefined: ClassVar[tuple[str, ...]] = ("error",)

    model: str
    fingerprint: str
    jacobian: Tensor
    embedding: Tensor
    error: Tensor
    prompts: int
    positions: int
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def bound(self, lens: HasModel, *, top_k: int = 5, sites: Sequence[str] | str = STREAM) -> Intervention:
        """The read `jacobian_lens` with these matrices, for `lens.run` here or remote.

        - lens: the `Lens` that it is for
        - top_k: how many tokens
        - sites: "llm.embedding", "llm.residual", or both

        Raises `InvalidValue` for another model than the one it was fitted on, `UnknownName` for another site.
        """
        chosen = self._matrices(lens, sites)
        return jacobian_lens.at(list(chosen)).bind(jacobian=per_layer(chosen), top_k=top_k)

    def bound_entropy(self, lens: HasModel, *, sites: Sequence[str] | str = STREAM) -> Intervention:
        """The read `jacobian_entropy` with these matrices.

        - lens, sites: as of `bound`, which says what is raised.
        """
        chosen = self._matrices(lens, sites)
        return jacobian_entropy.at(list(chosen)).bind(jacobian=per_layer(chosen))

    def _matrices(self, lens: HasModel, sites: Sequence[str] | str) -> dict[str, Tensor]:
        refuse_other_model("Jacobian lens", self.model, self.fingerprint, lens)
        values = {"llm.embedding": self.embedding, "llm.residual": self.jacobian}
        return {site: values[site] for site in asked_sites(sites)}

    def check(self) -> None:
        refuse_tensor("jacobian", self.jacobian, torch.float32, "layer", "hidden", self.jacobian.shape[-1])
        refuse_tensor("embedding", self.embedding, torch.float32, *self.jacobian.shape[1:])
        refuse_tensor("error", self.error, torch.float64, len(self.jacobian) + 1)
        refuse_range("error", self.error, 0)
        refuse_unless(self.prompts > 0, "prompts", f"is {self.prompts}")
        refuse_unless(self.positions >= self.prompts, "positions", f"is {self.positions} of {self.prompts} prompts")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: getattr(self, name) for name in ("jacobian", "embedding", "error")}
        names = ("model", "fingerprint", "prompts", "positions", "parameters", "provenance")
        return tensors, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> JacobianLens:
        return cls(**{**metadata, **{name: tensors[name] for name in ("jacobian", "embedding", "error")}})
