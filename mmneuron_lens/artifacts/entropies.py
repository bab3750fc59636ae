"""Entropy of the next-token distribution by layer and kind of token (Figure 7, Table 9)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.artifacts.fitting import ROUNDING, refuse_range, refuse_tensor


@dataclass(frozen=True, eq=False, repr=False)
class Entropies(Artifact):
    """Entropy of the next-token distribution in one domain, by layer and kind of token, in 16 buckets of images.

    - `entropy`: float64 [bucket, layer, kind], summed over tokens, in nats; layer 0 is the embedding; `kinds`: names.
    - `confidence`, `below`: float64 and int64 [bucket, kind] at the output: the sum of the most likely next token's
      probability, and how many tokens have it under `CONFIDENT`. `tokens`: int64 [bucket, kind].
    """

    kind: ClassVar[str] = "entropies"

    model: str
    domain: str
    kinds: tuple[str, ...]
    entropy: Tensor
    confidence: Tensor
    below: Tensor
    tokens: Tensor
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def mean(self, buckets: Tensor | None = None) -> Float64[Tensor, "layer kind"]:
        """Token-weighted mean entropy, in nats; of these buckets (with repetition), if given. NaN without tokens."""
        chosen = torch.arange(len(self.tokens), device=self.tokens.device) if buckets is None else buckets
        return self.entropy[chosen].sum(0) / self.tokens[chosen].sum(0)

    def check(self) -> None:
        kinds = len(self.kinds)
        refuse_tensor("entropy", self.entropy, torch.float64, BUCKETS, "layer", kinds)
        refuse_tensor("confidence", self.confidence, torch.float64, BUCKETS, kinds)
        refuse_tensor("below", self.below, torch.int64, BUCKETS, kinds)
        refuse_tensor("tokens", self.tokens, torch.int64, BUCKETS, kinds)
        refuse_range("tokens", self.tokens, 0)
        refuse_range("below", self.below, 0, self.tokens)
        refuse_range("confidence", self.confidence, 0, self.tokens * (1 + ROUNDING))
        refuse_range("entropy", self.entropy, -ROUNDING)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: getattr(self, name) for name in ("entropy", "confidence", "below", "tokens")}
        own = ("model", "domain", "kinds", "parameters", "provenance")
        return tensors, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Entropies:
        own: dict[str, Any] = {**metadata, "kinds": tuple(metadata["kinds"]), **tensors}
        return cls(**own)
