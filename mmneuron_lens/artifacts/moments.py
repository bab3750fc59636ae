"""Moments: how much, not only how often, each neuron was active in one domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_unless

THRESHOLD = 0.1
"""What `above` counts beyond; MANU calls a neuron active there."""


@dataclass(frozen=True, eq=False, repr=False)
class Moments(Artifact):
    """Sums over the tokens of one domain, by bucket of images and kind of token.

    By site: the neurons' own (`llm.mlp.act`, ...), and `llm.mlp.post`, `vision.mlp.post` where the MLP is gated; where
    it is not, post is act, and only act is there.

    - `tokens[site]`: int64 [bucket, kind]; `kinds[site]`: the names along the kind axis.
    - `positive[site]`, `above[site]`: int64 [bucket, layer, kind, neuron], on how many tokens the value exceeds 0, and
      `THRESHOLD`.
    - `sums[site]`, `squares[site]`: float64 [bucket, layer, kind, neuron].
    - `maximum[site]`: float32 [bucket, layer, kind, neuron], NaN where there were no tokens.
    """

    kind: ClassVar[str] = "moments"
    undefined: ClassVar[tuple[str, ...]] = ("maximum/",)

    model: str
    domain: str
    tokens: dict[str, Tensor]
    positive: dict[str, Tensor]
    above: dict[str, Tensor]
    sums: dict[str, Tensor]
    squares: dict[str, Tensor]
    maximum: dict[str, Tensor]
    kinds: dict[str, tuple[str, ...]]
    samples: int
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        refuse_unless(self.samples >= 0, "samples", f"is {self.samples}, and cannot be below 0")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("tokens", "positive", "above", "sums", "squares", "maximum")
        tensors = {f"{name}/{site}": value for name in names for site, value in getattr(self, name).items()}
        own = ("model", "domain", "kinds", "samples", "provenance")
        return tensors, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Moments:
        kinds = {site: tuple(some) for site, some in metadata["kinds"].items()}
        names = ("tokens", "positive", "above", "sums", "squares", "maximum")
        by_name: dict[str, Any] = {name: {site: tensors[f"{name}/{site}"] for site in kinds} for name in names}
        return cls(**{**metadata, **by_name, "kinds": kinds})
