"""Text states: a bank of the states that words of texts have after each layer, which image tokens are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless

LENGTH = 0.01
"""How far float16 may carry the length of a state from 1."""


@dataclass(frozen=True, eq=False, repr=False)
class TextStates(Artifact):
    """States of the residual stream at the tokens of texts, in their context, of one model.

    - `states`: float16 [state, hidden], of length 1. `layer`: int64 [state], after which layer, from 1.
    - `text`, `place`: int64 [state], the text that the token stands in, and which of its tokens it is.
    - `texts`: the texts. `tokens`: the token of each state, as it reads.
    - `model`, `fingerprint`: what computed them.
    """

    kind: ClassVar[str] = "text-states"

    model: str
    fingerprint: str
    texts: tuple[str, ...]
    tokens: tuple[str, ...]
    states: Tensor
    layer: Tensor
    text: Tensor
    place: Tensor
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        number = len(self.tokens)
        refuse_unless(number > 0, "tokens", "are none")
        refuse_tensor("states", self.states, torch.float16, number, "hidden")
        for name in ("layer", "text", "place"):
            refuse_tensor(name, getattr(self, name), torch.int64, number)
            refuse_range(name, getattr(self, name), 1 if name == "layer" else 0)
        refuse_range("text", self.text, 0, len(self.texts) - 1)
        length = self.states.float().norm(dim=-1)
        refuse_unless(bool(((length - 1).abs() < LENGTH).all()), "states", "are not of length 1")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        names = ("model", "fingerprint", "texts", "tokens", "parameters", "provenance")
        return tensors, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> TextStates:
        lists = {name: tuple(metadata[name]) for name in ("texts", "tokens")}
        own: dict[str, Any] = {**metadata, **lists, **tensors}
        return cls(**own)


_TENSORS = ("states", "layer", "text", "place")
