"""Attributions: how much each neuron adds to the log-probability of the answers of one domain, by gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_unless


@dataclass(frozen=True, eq=False, repr=False)
class Attributions(Artifact):
    """Sums over the questions of one domain, by bucket of images.

    By site whose neurons are counted (`llm.mlp.act`, ...). Activation times gradient is the same at `act` as at `post`,
    since post = act * up.

    - `questions`: int64 [bucket]. `tokens[site]`: int64 [bucket], positions that count.
    - `attribution[site]`: float64 [bucket, layer, neuron], in nats: the sum over questions and positions of activation
      times the gradient of the answer's log-probability; by so much it falls, to first order, without the neuron.
    - `strength[site]`: float64 [bucket, layer, neuron], the sum of |gradient|^alpha * |activation| (arXiv 2512.00918).
    - `parameters`: alpha, and how gradients were taken.
    """

    kind: ClassVar[str] = "attributions"

    model: str
    domain: str
    questions: Tensor
    tokens: dict[str, Tensor]
    attribution: dict[str, Tensor]
    strength: dict[str, Tensor]
    parameters: dict[str, Any]
    samples: int
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        refuse_unless(self.samples >= 0, "samples", f"is {self.samples}, and cannot be below 0")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("tokens", "attribution", "strength")
        tensors = {f"{name}/{site}": value for name in names for site, value in getattr(self, name).items()}
        own = ("model", "domain", "parameters", "samples", "provenance")
        return {**tensors, "questions": self.questions}, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Attributions:
        by_name: dict[str, Any] = {"tokens": {}, "attribution": {}, "strength": {}}
        for name, tensor in tensors.items():
            what, _, site = name.partition("/")
            if site:
                by_name[what][site] = tensor
        return cls(**{**metadata, **by_name, "questions": tensors["questions"]})
