"""Knock-out flow: what the answer loses when positions may not attend to others, layer by layer (not in the paper)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import ROUNDING, refuse_range, refuse_tensor, refuse_unless


@dataclass(frozen=True, eq=False, repr=False)
class KnockOutFlow(Artifact):
    """The probability of the answer's first token with attention cut around each layer, in one domain.

    Of the questions that the model answers right, `asked` being all that were tried; every question's own value is
    kept, so that means and intervals are made later.

    - `routes`: what is cut, "image to question" being the question's attention to the image.
    - `questions`: ids. `tokens`: int64 [question], the first token of the answer.
    - `plain`: float64 [question], its probability with nothing cut; `cut`: float64 [route, layer, question], with the
      route cut in `window` layers around a layer.
    - `missing`: why there is no question; "" where there is one.
    """

    kind: ClassVar[str] = "knock-out-flow"

    model: str
    domain: str
    routes: tuple[str, ...]
    questions: tuple[str, ...]
    tokens: Tensor
    plain: Tensor
    cut: Tensor
    window: int
    asked: int
    missing: str = ""
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def change(self) -> Float64[Tensor, "route layer question"]:
        """100 (p_cut - p) / p, in per cent (arXiv 2411.18620): -100 where nothing of the answer is left."""
        return 100 * (self.cut - self.plain) / self.plain

    def check(self) -> None:
        number = len(self.questions)
        refuse_tensor("tokens", self.tokens, torch.int64, number)
        refuse_tensor("plain", self.plain, torch.float64, number)
        refuse_tensor("cut", self.cut, torch.float64, len(self.routes), "layer", number)
        refuse_range("tokens", self.tokens, 0)
        refuse_unless(bool((self.plain > 0).all()), "plain", "has probabilities that are not above 0")
        refuse_range("plain", self.plain, 0, 1 + ROUNDING)
        refuse_range("cut", self.cut, 0, 1 + ROUNDING)
        refuse_unless(self.window >= 1, "window", f"is {self.window}, of at least 1 layer")
        refuse_unless(self.asked >= number, "asked", f"is {self.asked}, of {number} questions answered right")
        refuse_unless(bool(number) != bool(self.missing), "missing", f"is {self.missing!r} of {number} questions")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("model", "domain", "routes", "questions", "window", "asked", "missing", "parameters", "provenance")
        tensors = {"tokens": self.tokens, "plain": self.plain, "cut": self.cut}
        return tensors, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> KnockOutFlow:
        lists = {name: tuple(metadata[name]) for name in ("routes", "questions")}
        own: dict[str, Any] = {**metadata, **lists, **tensors}
        return cls(**own)
