"""Neighbours: the words in context whose states are nearest to those of one question's tokens, at every layer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

import polars as pl
import torch
from torch import Tensor
from typing_extensions import TypedDict

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import ROUNDING, refuse_range, refuse_tensor, refuse_unless


class TextPlace(TypedDict):
    """A word in context: a token as it reads, after which layer, the text that it stands in, and where."""

    token: str
    layer: int
    text: str
    place: int


@dataclass(frozen=True, eq=False, repr=False)
class Neighbours(Artifact):
    """The nearest neighbours of one question's tokens at every layer, in a bank of text states of all layers.

    - `states` int64, `cosines` float32 [layer, position, k], nearest first: which state of the bank, and how near.
    - `layers`: "embedding", "1", "2", ...; `labels` and `kinds`: a name and "image" or "text" by position.
    - `found`: every state that is a neighbour, by its number in the bank.
    """

    kind: ClassVar[str] = "neighbours"

    model: str
    domain: str
    id: str
    question: str
    layers: tuple[str, ...]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    states: Tensor
    cosines: Tensor
    found: dict[str, TextPlace]
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def best(self, position: int, layer: int = -1) -> TextPlace:
        """The nearest word of a position at a layer."""
        return self.found[str(int(self.states[layer, position, 0]))]

    def rows(self, position: int, even: bool = False) -> list[tuple[str, tuple[str, ...], tuple[float, ...]]]:
        """A position by layer: its name, the nearest words and their cosines; `even` as of `LensTrace.rows`."""
        return [
            (name, tuple(one["token"] for one in places), cosines)
            for name, places, cosines in self.places(position, even)
        ]

    def places(self, position: int, even: bool = False) -> list[tuple[str, list[TextPlace], tuple[float, ...]]]:
        """As `rows`, with all that is known of the words.

        - position: an index into `labels`
        - even: layers 2, 4, ... only
        """
        chosen = [row for row in range(len(self.layers)) if not even or (row > 0 and row % 2 == 0)]
        return [
            (
                f"layer {self.layers[row]}" if row else "embedding",
                [self.found[str(state)] for state in _lists(self.states[row, position])],
                tuple(_lists(self.cosines[row, position])),
            )
            for row in chosen
        ]

    def to_frame(self) -> pl.DataFrame:
        """A row per layer, position and rank: layer, position, label, kind, rank (from 1), cosine, token, from_layer
        (of the token's state), text."""
        rows: list[dict[str, Any]] = []
        for number, (label, kind) in enumerate(zip(self.labels, self.kinds, strict=True)):
            for layer, places, cosines in self.places(number):
                for rank, (one, cosine) in enumerate(zip(places, cosines, strict=True), 1):
                    row = {"layer": layer, "position": number, "label": label, "kind": kind, "rank": rank}
                    row |= {"cosine": cosine, "token": one["token"], "from_layer": one["layer"], "text": one["text"]}
                    rows.append(row)
        return pl.DataFrame(rows)

    def check(self) -> None:
        layers, positions = len(self.layers), len(self.labels)
        refuse_unless(len(self.kinds) == positions, "kinds", f"are {len(self.kinds)} of {positions} positions")
        refuse_tensor("states", self.states, torch.int64, layers, positions, "k")
        refuse_tensor("cosines", self.cosines, torch.float32, *self.states.shape)
        refuse_range("states", self.states, 0)
        refuse_range("cosines", self.cosines, -1 - ROUNDING, 1 + ROUNDING)
        nearest = bool((self.cosines.diff(dim=-1) <= ROUNDING).all())
        refuse_unless(nearest, "cosines", "do not have the nearest first")
        unnamed = {str(one) for one in _lists(self.states.flatten())} - self.found.keys()
        refuse_unless(not unnamed, "found", f"has no state {min(unnamed, default='')}")
        for name, one in self.found.items():
            refuse_unless(one["layer"] >= 1 and one["place"] >= 0, "found", f"has state {name} nowhere in a text")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"states": self.states, "cosines": self.cosines}
        own = (one.name for one in fields(self) if one.name not in tensors)
        return tensors, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Neighbours:
        lists = {name: tuple(metadata[name]) for name in ("layers", "labels", "kinds")}
        own: dict[str, Any] = {**metadata, **lists, **tensors}
        return cls(**own)


def _lists(tensor: Tensor) -> list[Any]:
    """`tolist`, of which torch's types do not say what is in the lists."""
    return cast(Any, tensor).tolist()
