"""Neuron examples: the pictures and words on which chosen neurons were most active."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_unless

SIDE = 24
"""Rows and columns of a map, whatever the picture's proportions."""

AROUND = 12
"""Tokens before and behind the largest activation that are kept."""


@dataclass(frozen=True)
class ShownSample:
    """A question that is an example of some neuron.

    - id, domain, question, answers: of the sample.
    - images: by picture the sha256 of its file's bytes, and its height and width as a viewer shows it.
    - tokens: runs of text of the prompt as the language model reads it: the position of the run's first token, and the
      tokens as they read. What lies between two runs are image positions.
    """

    id: str
    domain: str
    question: str
    answers: tuple[str, ...]
    images: tuple[tuple[str, int, int], ...]
    tokens: tuple[tuple[int, tuple[str, ...]], ...]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronExamples(Artifact):
    """The largest activations of chosen neurons, one an image, best first; by site.

    - `samples`: every question that is an example.
    - `neurons[site]`: int64 [neuron, 2], layer and index.
    - `activation[site]`: float32 [neuron, k], NaN where there are fewer than k.
    - `sample[site]`: int64 [neuron, k], a place in `samples`, -1 where there is none.
    - `position[site]`: int64 [neuron, k], within the sample, as the field `position` counts at this site; -1.
    - `picture[site]`: int64 [neuron, k], which of the sample's pictures the map lies on; -1 where there is none.
    - `box[site]`: float32 [neuron, k, 4], left, top, right and bottom of the position in shares of that picture; NaN
      for positions without a place in it (words, queries of a Q-Former).
    - `maps[site]`: uint8 [neuron, k, `SIDE`, `SIDE`]: the activation over the picture, from 0 (at most zero, or nothing
      there) to 255 (the largest of this neuron on this picture), rows and columns of equal parts of the picture.
    - `map_maximum[site]`: float32 [neuron, k], what 255 stands for; 0 where nothing on the picture is above zero.
    - `around[site]`: uint8 [neuron, k, 2 * `AROUND` + 1]: the activation on the tokens around `position` at sites of
      the language model, in the same way, 255 for the largest of these; all zero elsewhere.
    """

    kind: ClassVar[str] = "neuron-examples"
    undefined: ClassVar[tuple[str, ...]] = ("activation/", "box/")

    model: str
    samples: tuple[ShownSample, ...]
    neurons: dict[str, Tensor]
    activation: dict[str, Tensor]
    sample: dict[str, Tensor]
    position: dict[str, Tensor]
    picture: dict[str, Tensor]
    box: dict[str, Tensor]
    maps: dict[str, Tensor]
    map_maximum: dict[str, Tensor]
    around: dict[str, Tensor]
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        refuse_unless(bool(self.neurons) or not self.samples, "neurons", "names no site")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{name}/{site}": value for name in _TENSORS for site, value in getattr(self, name).items()}
        samples = [asdict(one) for one in self.samples]
        own = {"model": self.model, "parameters": self.parameters, "provenance": self.provenance}
        return tensors, {**own, "samples": samples}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> NeuronExamples:
        by_name: dict[str, Any] = {name: {} for name in _TENSORS}
        for name, tensor in tensors.items():
            what, _, site = name.partition("/")
            by_name[what][site] = tensor
        samples = tuple(_shown(one) for one in metadata["samples"])
        return cls(**{**metadata, **by_name, "samples": samples})


_TENSORS = ("neurons", "activation", "sample", "position", "picture", "box", "maps", "map_maximum", "around")


def _shown(one: dict[str, Any]) -> ShownSample:
    images = tuple((digest, height, width) for digest, height, width in one["images"])
    tokens = tuple((first, tuple(words)) for first, words in one["tokens"])
    return ShownSample(**{**one, "answers": tuple(one["answers"]), "images": images, "tokens": tokens})
