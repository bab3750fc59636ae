"""Neuron examples: the pictures and words on which chosen neurons were most active."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import polars as pl
import torch
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_types, refuse_unless
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.artifacts.top_activations import DIGEST, refuse_neurons, refuse_ranked

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
    - `picture[site]`: int64 [neuron, k], which of the sample's pictures the map lies on: that of the position; of a
      word, that with the largest activation; the first where no position has a place. -1 where there is none.
    - `box[site]`: float32 [neuron, k, 4], left, top, right and bottom of the position in shares of that picture; NaN
      for positions without a place in it (words, queries of a Q-Former).
    - `maps[site]`: uint8 [neuron, k, `SIDE`, `SIDE`]: the activation over the picture, from 0 (at most zero, or nothing
      there) to 255 (the largest of this neuron on this picture), rows and columns of equal parts of the picture. A cell
      shows the smallest of the boxes that cover its middle; those in `box` show the activation of `position`.
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

    def __repr__(self) -> str:
        held = ", ".join(f"{len(one)} neurons at {site}" for site, one in self.neurons.items())
        k = max((one.shape[1] for one in self.sample.values()), default=0)
        return f"NeuronExamples({self.model!r:.80}: {held}, {k} each, of {len(self.samples)} questions)"

    def check(self) -> None:
        refuse_unless(bool(self.neurons) or not self.samples, "neurons", "names no site")
        for number, one in enumerate(self.samples):
            _check_sample(f"samples[{number}]", one)
        for site, neurons in self.neurons.items():
            refuse_neurons(site, neurons)
            found = {name: getattr(self, name)[site] for name in ("activation", "sample", "position")}
            refuse_tensor(f"sample/{site}", found["sample"], torch.int64, len(neurons), "k")
            refuse_ranked(site, len(neurons), **found, samples=len(self.samples))
            self._check_maps(site)

    def _check_maps(self, site: str) -> None:
        sample, picture, box = self.sample[site], self.picture[site], self.box[site]
        maps, largest, around = self.maps[site], self.map_maximum[site], self.around[site]
        shape = tuple(sample.shape)
        refuse_tensor(f"picture/{site}", picture, torch.int64, *shape)
        refuse_tensor(f"box/{site}", box, torch.float32, *shape, 4)
        refuse_tensor(f"maps/{site}", maps, torch.uint8, *shape, SIDE, SIDE)
        refuse_tensor(f"map_maximum/{site}", largest, torch.float32, *shape)
        refuse_tensor(f"around/{site}", around, torch.uint8, *shape, 2 * AROUND + 1)
        pictures = torch.tensor([len(one.images) for one in self.samples] + [0], device="cpu")
        fits = (picture >= -1) & (picture < pictures[sample].clamp(min=0))
        refuse_unless(bool((fits | ((sample < 0) & (picture == -1))).all()), f"picture/{site}", "is none of its sample")
        refuse_range(f"box/{site}", box, 0, 1)
        placed = ~box.isnan().all(-1)
        ordered = (box[..., 0] < box[..., 2]) & (box[..., 1] < box[..., 3])
        refuse_unless(bool((ordered | ~placed).all()), f"box/{site}", "has a right or bottom before its left or top")
        refuse_unless(not bool((placed & (picture < 0)).any()), f"box/{site}", "lies on no picture")
        refuse_range(f"map_maximum/{site}", largest, 0)
        bare = (picture < 0) | (largest == 0)
        refuse_unless(not bool(maps[bare].any()), f"maps/{site}", "are above zero where nothing on the picture is")
        refuse_unless(not bool(largest[picture < 0].any()), f"map_maximum/{site}", "is above zero without a picture")
        refuse_unless(not bool(around[sample < 0].any()), f"around/{site}", "is above zero where there is no example")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{name}/{site}": value for name in _TENSORS for site, value in getattr(self, name).items()}
        samples = [asdict(one) for one in self.samples]
        own = {"model": self.model, "parameters": self.parameters, "provenance": self.provenance}
        return tensors, {**own, "samples": samples}

    def to_frame(self) -> pl.DataFrame:
        """A row per example, best first: model, site, layer, neuron, rank from 1, activation, domain, sample (its id),
        question, answers, position, picture (the sha256 of its file; null without one), left, top, right, bottom (of
        the position, in shares of the picture; null for words), map_maximum.
        """
        frames = [self._frame(site) for site in self.neurons]
        return pl.concat(frames) if frames else pl.DataFrame()

    def _frame(self, site: str) -> pl.DataFrame:
        row, rank = (self.sample[site] >= 0).nonzero(as_tuple=True)
        shown = [self.samples[number] for number in self.sample[site][row, rank].tolist()]
        pictures = self.picture[site][row, rank].tolist()
        digests = [one.images[place][0] if place >= 0 else None for one, place in zip(shown, pictures, strict=True)]
        edges = dict(zip(("left", "top", "right", "bottom"), self.box[site][row, rank].T, strict=True))
        columns: dict[str, Any] = {
            "layer": self.neurons[site][row, 0].numpy(),
            "neuron": self.neurons[site][row, 1].numpy(),
            "rank": (rank + 1).numpy(),
            "activation": self.activation[site][row, rank].numpy(),
            **{name: [getattr(one, name) for one in shown] for name in ("domain", "id", "question")},
            "answers": [list(one.answers) for one in shown],
            "position": self.position[site][row, rank].numpy(),
            "picture": digests,
            **{name: edge.numpy() for name, edge in edges.items()},
            "map_maximum": self.map_maximum[site][row, rank].numpy(),
        }
        types = {name: pl.String for name in ("domain", "id", "question", "picture")}
        made = pl.DataFrame(columns, schema_overrides={**types, "answers": pl.List(pl.String)})
        made = made.rename({"id": "sample"}).with_columns(pl.col(list(edges)).fill_nan(None))
        return made.select(pl.lit(self.model).alias("model"), pl.lit(site).alias("site"), pl.all())

    def _repr_html_(self) -> str:
        return table_html(self.to_frame().head(50))

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> NeuronExamples:
        by_name: dict[str, Any] = {name: {} for name in _TENSORS}
        for name, tensor in tensors.items():
            what, _, site = name.partition("/")
            by_name[what][site] = tensor
        samples = tuple(_shown(one) for one in metadata["samples"])
        return cls(**{**metadata, **by_name, "samples": samples})


_TENSORS = ("neurons", "activation", "sample", "position", "picture", "box", "maps", "map_maximum", "around")


def _check_sample(where: str, one: ShownSample) -> None:
    """Raises `InvalidValue` for what no question can have."""
    try:
        refuse_types(one)
    except InvalidValue as error:
        raise InvalidValue(f"{where}.{error}") from None
    for digest, height, width in one.images:
        refuse_unless(DIGEST.fullmatch(digest) is not None, f"{where}.images", f"have {digest!r:.80}, no sha256")
        refuse_unless(height > 0 and width > 0, f"{where}.images", f"have a picture of {height} by {width} pixels")
    end = 0
    for first, words in one.tokens:
        refuse_unless(first >= end and bool(words), f"{where}.tokens", f"have a run at {first}, before {end} or empty")
        end = first + len(words)


def _shown(one: dict[str, Any]) -> ShownSample:
    images = tuple((digest, height, width) for digest, height, width in one["images"])
    tokens = tuple((first, tuple(words)) for first, words in one["tokens"])
    return ShownSample(**{**one, "answers": tuple(one["answers"]), "images": images, "tokens": tokens})
