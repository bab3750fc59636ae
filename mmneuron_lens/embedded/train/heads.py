"""Temporary heads that teach the vision tower a scene's facts and the Q-Former to answer; thrown away at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmneuron_lens.embedded.corpus.draw import PAINTERS, Scene

FACTS = [(domain, name, values) for domain, painter in PAINTERS.items() for name, values in painter.FACTS.items()]


class AnswerHead(nn.Module):
    """Reads the answer off what the Q-Former's queries found: a short way for the gradient."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm, self.answer = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def loss(self, queries: Float[Tensor, "row query width"], answers: Int[Tensor, " row"]) -> tuple[Tensor, float]:
        """Cross entropy of the answers, and the share told right."""
        logits = self.answer(self.norm(queries.mean(1))).float()
        return nn.functional.cross_entropy(logits, answers), (logits.argmax(-1) == answers).float().mean().item()


class FactHeads(nn.Module):
    """One attention pooling and one classifier per fact, over all patches with learned places."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(places, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(len(FACTS), width) * 0.5)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        largest = max(len(values) for _, _, values in FACTS)
        self.classes = nn.Parameter(torch.randn(len(FACTS), largest, width) * 0.02)
        absent = torch.tensor([[i >= len(values) for i in range(largest)] for _, _, values in FACTS])
        self.register_buffer("absent", absent)

    def forward(self, patches: Float[Tensor, "image patch width"]) -> Float[Tensor, "image fact value"]:
        memory = self.norm(patches) + self.places[: patches.shape[1]]
        queries = self.queries.expand(len(patches), -1, -1)
        pooled = self.attention(queries, memory, memory, need_weights=False)[0]
        pooled = pooled + self.mlp(pooled)
        logits = torch.einsum("ifw,fvw->ifv", pooled.float(), self.classes)
        return logits.masked_fill(self.absent, -1e4)

    def loss(self, patches: Float[Tensor, "image patch width"], scenes: Sequence[Scene]) -> tuple[Tensor, float]:
        """Cross entropy over the facts that the scenes have, and the share told right."""
        targets = torch.full((len(scenes), len(FACTS)), -100)
        for row, scene in zip(targets, scenes, strict=True):
            for i, (domain, name, values) in enumerate(FACTS):
                if scene.domain == domain and name in scene.facts:
                    row[i] = values.index(scene.facts[name])
        logits, known = self(patches), targets >= 0
        if not known.any():
            return logits.sum() * 0, 0.0
        right = (logits.argmax(-1) == targets)[known].float().mean().item()
        return nn.functional.cross_entropy(logits[known], targets[known]), right
