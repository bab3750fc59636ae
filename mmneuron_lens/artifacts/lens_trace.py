"""What the tokens of one question decode to at every layer (Figures 6 and 10 to 13)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from interventions.errors import OutOfRange, UnknownName
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import ROUNDING, refuse_range, refuse_tensor, refuse_unless


@dataclass(frozen=True, eq=False, repr=False)
class LensTrace(Artifact):
    """What the tokens of one question decode to at every layer.

    - `tokens` int64, `probabilities` float32 [layer, position, k], best first; `entropy` float32 [layer, position], in
      nats. `layers`: "embedding", "1", "2", ...; `labels` and `kinds`: a name and "image" or "text" by position.
    - `boxes` float32 [position, 5]: image, left, top, right, bottom as shares of the image; NaN where a position is no
      part of the image. `pictures`: uint8 [height, width, 3], small copies to look at.
    - `words`: the vocabulary's text of every token in `tokens`. `prompt`: the words asked. `expected`: the accepted
      answers.
    """

    kind: ClassVar[str] = "lens trace"
    undefined: ClassVar[tuple[str, ...]] = ("boxes",)

    model: str
    domain: str
    id: str
    question: str
    prompt: str
    expected: tuple[str, ...]
    layers: tuple[str, ...]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: Tensor
    probabilities: Tensor
    entropy: Tensor
    boxes: Tensor
    pictures: tuple[Tensor, ...]
    words: dict[str, str]
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def best(self, position: int, layer: int = -1) -> str:
        """The word that a position most probably continues with at a layer; Figure 6b's expected one is the last's."""
        return self.words[str(int(self.tokens[layer, position, 0]))]

    def last(self, kind: str) -> int:
        """The last position of a kind; `KeyError` names the kinds there are."""
        places = [place for place, name in enumerate(self.kinds) if name == kind]
        if not places:
            raise UnknownName(f"no {kind!r} position was read; choose from {', '.join(dict.fromkeys(self.kinds))}.")
        return places[-1]

    def position(self, kind: str, number: int) -> int:
        """The position of a kind by number, from 0; negative ones count from the end. `IndexError` names how many."""
        places = [place for place, name in enumerate(self.kinds) if name == kind]
        if not -len(places) <= number < len(places):
            raise OutOfRange(f"there are {len(places)} {kind} positions, no number {number}.")
        return places[number]

    def rows(self, position: int, even: bool = False) -> list[tuple[str, tuple[str, ...], tuple[float, ...]]]:
        """A position as Figure 6 shows it: per layer its name, the words and their probabilities, best first.

        - position: an index into `labels`.
        - even: layers 2, 4, ... only.
        """
        chosen = [row for row in range(len(self.layers)) if not even or (row > 0 and row % 2 == 0)]
        return [
            (
                f"layer {self.layers[row]}" if row else "embedding",
                tuple(self.words[str(token)] for token in _lists(self.tokens[row, position])),
                tuple(_lists(self.probabilities[row, position])),
            )
            for row in chosen
        ]

    def document(self) -> dict[str, Any]:
        """Everything that the page's hover view shows, as JSON can hold it, words by their number in one list."""
        numbers = {token: number for number, token in enumerate(self.words)}
        return {
            "question": self.question,
            "expected": list(self.expected),
            "layers": list(self.layers),
            "labels": list(self.labels),
            "kinds": list(self.kinds),
            "boxes": [None if torch.isnan(box[0]) else [round(part, 5) for part in _lists(box)] for box in self.boxes],
            "words": list(self.words.values()),
            "tokens": [[[numbers[str(token)] for token in row] for row in layer] for layer in _lists(self.tokens)],
            # In thousandths, which is more than a colour shows.
            "probabilities": _lists((1000 * self.probabilities).round().int()),
            "entropy": [[round(value, 2) for value in layer] for layer in _lists(self.entropy)],
        }

    def check(self) -> None:
        layers, positions = len(self.layers), len(self.labels)
        refuse_unless(len(self.kinds) == positions, "kinds", f"are {len(self.kinds)} of {positions} positions")
        refuse_tensor("tokens", self.tokens, torch.int64, layers, positions, "k")
        refuse_tensor("probabilities", self.probabilities, torch.float32, *self.tokens.shape)
        refuse_tensor("entropy", self.entropy, torch.float32, layers, positions)
        refuse_tensor("boxes", self.boxes, torch.float32, positions, 5)
        refuse_range("probabilities", self.probabilities, 0, 1 + ROUNDING)
        refuse_range("entropy", self.entropy, -ROUNDING)
        unnamed = {str(token) for token in _lists(self.tokens.flatten())} - self.words.keys()
        refuse_unless(not unnamed, "words", f"has none for token {min(unnamed, default='')}")
        for number, picture in enumerate(self.pictures):
            refuse_tensor(f"picture/{number}", picture, torch.uint8, "height", "width", 3)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: getattr(self, name) for name in ("tokens", "probabilities", "entropy", "boxes")}
        tensors |= {f"picture/{number}": picture for number, picture in enumerate(self.pictures)}
        own = (one.name for one in fields(self) if one.name not in tensors and one.name != "pictures")
        return tensors, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> LensTrace:
        count = sum(name.startswith("picture/") for name in tensors)
        pictures = tuple(tensors.pop(f"picture/{number}") for number in range(count))
        names = ("expected", "layers", "labels", "kinds")
        own: dict[str, Any] = {**metadata, **{name: tuple(metadata[name]) for name in names}, **tensors}
        return cls(**own, pictures=pictures)


def _lists(tensor: Tensor) -> list[Any]:
    """`tolist`, of which torch's types do not say what is in the lists."""
    return cast(Any, tensor).tolist()
