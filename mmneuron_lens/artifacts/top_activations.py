"""Top activations: where in the questions of one domain each neuron was most active, one example an image."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl
import torch
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless
from mmneuron_lens.artifacts.table_html import table_html

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A sha256 in hexadecimal."""


@dataclass(frozen=True, eq=False, repr=False)
class TopActivations(Artifact):
    """The largest activations of neurons in one domain, best first, of every image the best alone; by site.

    - `samples`: the ids of the domain's questions, by number. `images`: the sha256 of the image's file of each; of
      several images, of their digests.
    - `neurons[site]`: int64 [neuron, 2], layer and index, in this order.
    - `activation[site]`: float32 [neuron, k], NaN where there are fewer than k images.
    - `sample[site]`, `position[site]`: int32 [neuron, k], a number in `samples`, and the place within that question as
      the field `position` counts at this site; -1 where there is none.
    - `parameters`: k, and how the questions were asked.
    """

    kind: ClassVar[str] = "top-activations"
    undefined: ClassVar[tuple[str, ...]] = ("activation/",)

    model: str
    domain: str
    samples: tuple[str, ...]
    images: tuple[str, ...]
    neurons: dict[str, Tensor]
    activation: dict[str, Tensor]
    sample: dict[str, Tensor]
    position: dict[str, Tensor]
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        refuse_unless(len(set(self.samples)) == len(self.samples), "samples", "repeat an id")
        refuse_unless(len(self.samples) == len(self.images), "images", f"are {len(self.images)}, not one a sample")
        for one in self.images:
            refuse_unless(DIGEST.fullmatch(one) is not None, "images", f"have {one!r:.80}, which is no sha256")
        refuse_unless(bool(self.neurons), "neurons", "names no site")
        for site, neurons in self.neurons.items():
            refuse_neurons(site, neurons)
            found = {name: getattr(self, name)[site] for name in ("activation", "sample", "position")}
            refuse_ranked(site, len(neurons), **found, samples=len(self.samples))
            refuse_tensor(f"sample/{site}", found["sample"], torch.int32, len(neurons), "k")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{name}/{site}": value for name in _TENSORS for site, value in getattr(self, name).items()}
        names = ("model", "domain", "samples", "images", "parameters", "provenance")
        return tensors, {name: getattr(self, name) for name in names}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> TopActivations:
        by_name: dict[str, Any] = {name: {} for name in _TENSORS}
        for name, tensor in tensors.items():
            what, _, site = name.partition("/")
            by_name[what][site] = tensor
        own = {name: tuple(metadata[name]) for name in ("samples", "images")}
        return cls(**{**metadata, **by_name, **own})

    def to_frame(self) -> pl.DataFrame:
        """A row per example: model, domain, site, layer, neuron, rank from 1, activation, sample (its id), position."""
        frames = [self._frame(site) for site in self.neurons]
        return pl.concat(frames)

    def _frame(self, site: str) -> pl.DataFrame:
        row, rank = (self.sample[site] >= 0).nonzero(as_tuple=True)
        number = self.sample[site][row, rank].tolist()
        layer, neuron = self.neurons[site][row].unbind(1)
        return pl.DataFrame(
            {
                "layer": layer.numpy(),
                "neuron": neuron.numpy(),
                "rank": (rank + 1).numpy(),
                "activation": self.activation[site][row, rank].numpy(),
                "sample": [self.samples[one] for one in number],
                "position": self.position[site][row, rank].numpy(),
            },
            schema_overrides={"sample": pl.String},
        ).select(
            pl.lit(self.model).alias("model"),
            pl.lit(self.domain).alias("domain"),
            pl.lit(site).alias("site"),
            pl.all(),
        )

    def _repr_html_(self) -> str:
        return table_html(self.to_frame().head(50))


_TENSORS = ("neurons", "activation", "sample", "position")


def refuse_neurons(site: str, neurons: Tensor) -> None:
    """Raises `InvalidValue` unless these are layers and indices in order, none twice."""
    refuse_tensor(f"neurons/{site}", neurons, torch.int64, "neuron", 2)
    refuse_range(f"neurons/{site}", neurons, 0)
    layer, index = neurons.unbind(1)
    ascends = (layer[1:] > layer[:-1]) | ((layer[1:] == layer[:-1]) & (index[1:] > index[:-1]))
    refuse_unless(bool(ascends.all()), f"neurons/{site}", "are not in order, or name one twice")


def refuse_ranked(
    site: str, neurons: int, *, activation: Tensor, sample: Tensor, position: Tensor, samples: int
) -> None:
    """Raises `InvalidValue` unless these are `[neuron, k]`, best first, absent ones last, numbers of `samples`."""
    refuse_tensor(f"activation/{site}", activation, torch.float32, neurons, "k")
    for name, one in (("sample", sample), ("position", position)):
        refuse_tensor(f"{name}/{site}", one, sample.dtype, *activation.shape)
        refuse_range(f"{name}/{site}", one, -1)
    refuse_range(f"sample/{site}", sample, -1, samples - 1)
    there = sample >= 0
    refuse_unless(bool((there == activation.isfinite()).all()), f"activation/{site}", "is not there for each sample")
    refuse_unless(bool((there == (position >= 0)).all()), f"position/{site}", "is not there for each sample")
    refuse_unless(bool((there[:, :-1] | ~there[:, 1:]).all()), f"sample/{site}", "has a gap")
    falls = (activation[:, :-1] >= activation[:, 1:]) | ~there[:, 1:]
    refuse_unless(bool(falls.all()), f"activation/{site}", "does not fall from the best to the last")
