"""Tops: the read of each neuron's top activations in one domain: its samples' numbers, its graph, its pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interventions import Graph, count_not_finite, largest, per_layer, top_images
from interventions.errors import InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.artifacts.top_activations import TopActivations
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.gather import Fold, Held, Piece, by_group
from mmneuron_lens.corpora.content import image_digest
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_tally
from mmneuron_lens.runtime.transport import WHOSE, RemoteFailed

READ = "top_images"
PARTS = ("activation", "sample", "position")


@dataclass(frozen=True)
class TopRead:
    """What is read of the samples of one domain, whatever batches, shards and jobs they come in.

    - samples, images: the id and the image of each number; numbers go by the images' digests, then by the ids.
    - neurons: by site int64 [neuron, 2], layer and index; None for all neurons of all `.act` sites.
    - k: how many images are kept of each neuron.
    """

    samples: tuple[str, ...]
    images: tuple[str, ...]
    neurons: Mapping[str, Tensor] | None
    k: int

    @property
    def facts(self) -> dict[str, Any]:
        """What a key says of it."""
        if self.neurons is None:
            return {"top": self.k, "neurons": "all"}
        digests = {site: hashlib.sha256(one.numpy().tobytes()).hexdigest() for site, one in self.neurons.items()}
        return {"top": self.k, "neurons": digests}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each sample, by its id."""
        return {name: number for number, name in enumerate(self.samples)}

    @cached_property
    def image_numbers(self) -> Int[Tensor, " number"]:
        """The number of the image of each sample."""
        known = {digest: number for number, digest in enumerate(dict.fromkeys(self.images))}
        return torch.tensor([known[digest] for digest in self.images], dtype=torch.int64, device="cpu")

    def numbered(self, batch: Batch | None, kept: Sequence[Sample]) -> Batch | None:
        """A batch whose samples have their numbers; `kept` are its prompts in order."""
        return None if batch is None else batch.with_samples([self.numbers[one.id] for one in kept])

    def graph(self, lens: Lens) -> Graph:
        """The reads, at every site that is asked for."""
        read = top_images.folded(largest(self.k, by="activation", distinct="image")).bind(images=self.image_numbers)
        sites = self.sites(lens)
        if self.neurons is None:
            return Graph((read.at(sites),))
        tables = {site: table_of(lens, site, self.neurons[site]) for site in sites}
        return read.at(sites).bind(neurons=per_layer(tables)) | count_not_finite.at(sites)

    def sites(self, lens: Lens) -> list[str]:
        """Where it reads, in forward order."""
        return [one for one in lens.sites if (one.endswith(".act") if self.neurons is None else one in self.neurons)]

    def tensors(self, lens: Lens, out: Mapping[tuple[str, str], Any]) -> dict[str, Tensor]:
        """What a run of `graph` found, by part and site: `[layer, chosen, k]`.

        Raises `NotFinite` as counting does, `RemoteFailed` for what a server cannot have read.
        """
        made: dict[str, Tensor] = {}
        for site in self.sites(lens) if out else ():
            if self.neurons is not None:
                refuse_tally(site, out["count_not_finite", site], lens.dtype)
            flat, sample = lens.architecture.place(site).layers is None, out[READ, site]["sample"]
            if sample.numel() and not -1 <= int(sample.min()) <= int(sample.max()) < len(self.samples):
                raise RemoteFailed(f"{site} was read on a question that was not asked; {WHOSE}.")
            for part in PARTS:
                value = out[READ, site][part].cpu()
                value = value.float() if part == "activation" else value.int()
                # NaN is no value of a piece; what is absent has sample -1.
                value = value.masked_fill(value.isinf(), 0) if part == "activation" else value
                made[f"top {part}/{site}"] = (value[None] if flat else value).contiguous()
        return made

    def fold(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two pieces as one, by the fold of the read itself."""
        sides, made = (self._entries(first), self._entries(second)), dict[str, Tensor]()
        fold = largest(self.k, by="activation", distinct="image")
        for site in sides[0]:
            found = fold.together(fold.alone(sides[0][site]), sides[1][site])
            gone = found["sample"] < 0
            found["activation"] = found["activation"].masked_fill(gone, 0)
            made |= {f"top {part}/{site}": found[part] for part in PARTS}
        return made

    def added(self, lens: Lens, piece: Piece, out: Mapping[tuple[str, str], Any]) -> Piece:
        """A piece of the same run with what it found."""
        return replace(piece, tensors={**piece.tensors, **self.tensors(lens, out)})

    def beside(self, fold: Fold) -> Fold:
        """The fold of pieces that hold something else too, which is folded by `fold`."""

        def both(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**fold(without_tops(first), without_tops(second)), **self.fold(first, second)}

        return both

    def _entries(self, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """By site what the fold takes."""
        images, found = self.image_numbers, dict[str, dict[str, Tensor]]()
        for name, value in tensors.items():
            what, _, site = name.partition("/")
            if what.startswith("top "):
                found.setdefault(site, {})[what.removeprefix("top ")] = value
        for one in found.values():
            gone = one["sample"] < 0
            one["activation"] = one["activation"].masked_fill(gone, -torch.inf)
            one["image"] = images[one["sample"].clamp(min=0).long()].masked_fill(gone, -1)
        return found

    def folded(self, held: Sequence[Held], model: str, domain: str, facts: Mapping[str, Any]) -> TopActivations:
        """All pieces as the top activations of the domain; the same however they were cut. Needs no model."""
        groups = [piece.tensors for piece in by_group(held, self.fold).values() if piece.tensors]
        reasons = [reason for one in held for reason in one.piece.reasons.values()]
        if not groups:
            first = f" The first: {reasons[0]}" if reasons else ""
            raise InvalidValue(f"no sample of {domain} could be read; see the problems of its rows.{first}")
        total = groups[0]
        for one in groups[1:]:
            total = self.fold(total, one)
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        neurons: dict[str, Tensor] = {}
        for site in dict.fromkeys(name.partition("/")[2] for name in total if name.startswith("top ")):
            found = {part: total[f"top {part}/{site}"] for part in PARTS}
            layers, chosen, _ = found["sample"].shape
            neurons[site] = all_neurons(layers, chosen) if self.neurons is None else self.neurons[site]
            layer, place = neurons[site][:, 0], neurons[site][:, 1]
            place = place if self.neurons is None else places_of(neurons[site])
            own = {part: value[layer, place].contiguous() for part, value in found.items()}
            own["activation"] = own["activation"].masked_fill(own["sample"] < 0, torch.nan)
            for part in PARTS:
                parts[part][site] = own[part]
        shared = {name: value for name, value in facts.items() if name != "domain"}
        parameters = {"k": self.k, "neurons": "all" if self.neurons is None else "chosen"}
        return TopActivations(
            model, domain, self.samples, self.images, neurons, **parts, parameters=parameters, provenance=shared
        )


def without_tops(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What else a piece holds."""
    return {name: value for name, value in tensors.items() if not name.startswith("top ")}


def top_read(steps: Iterable[Step], k: int, neurons: Mapping[str, Tensor] | None = None) -> TopRead:
    """The read of the samples of some steps, all of one domain.

    - neurons: by site int64 [neuron, 2], as `listed` makes it; all if left out.

    Raises `InvalidValue` for a k below 1.
    """
    if k < 1:
        raise InvalidValue(f"top is {k}; keep at least 1 example of each neuron.")
    ordered = sorted((image_of(one), one.id) for step in steps for one in step.samples)
    return TopRead(tuple(name for _, name in ordered), tuple(image for image, _ in ordered), neurons, k)


def image_of(sample: Sample) -> str:
    """What tells a sample's image from others: the sha256 of its file; of several images, of their digests."""
    digests = [image_digest(path) for path in sample.images]
    if len(digests) == 1:
        return digests[0]
    told = digests or ["no image", sample.domain, sample.id]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def listed(lens: Lens, masks: Mapping[str, Bool[Tensor, "layer neuron"]]) -> dict[str, Int[Tensor, "neuron 2"]]:
    """Chosen neurons as layer and index, by site in forward order; sites without any are left out.

    Raises `UnknownName` for a site without neurons, `InvalidValue` for a mask of another size, or no neuron at all.
    """
    found: dict[str, Tensor] = {}
    known = [site for site in lens.sites if site.endswith((".act", ".post"))]
    for site in masks:
        if site not in known:
            raise UnknownName(unknown("site of neurons", site, known))
    for site in known:
        if site not in masks:
            continue
        place = lens.architecture.place(site)
        size = (place.layers or 1, place.sizes["neuron"])
        if tuple(masks[site].shape) != size or masks[site].dtype != torch.bool:
            form = f"{str(masks[site].dtype).removeprefix('torch.')} {list(masks[site].shape)}"
            raise InvalidValue(f"the mask of {site} is {form}; {lens.name} has bool {list(size)}, layer and neuron.")
        if bool(masks[site].any()):
            found[site] = masks[site].cpu().nonzero()
    if not found:
        raise InvalidValue("no neuron is chosen; choose one or more, such as those of a selection.")
    return found


def table_of(lens: Lens, site: str, neurons: Int[Tensor, "neuron 2"]) -> Int[Tensor, "*layer chosen"]:
    """The indices of each layer's neurons, filled up with -1; without the layer axis where a site has no layers."""
    layers = lens.architecture.place(site).layers
    places = places_of(neurons)
    table = torch.full((layers or 1, int(places.max()) + 1), -1, dtype=torch.int64, device="cpu")
    table[neurons[:, 0], places] = neurons[:, 1]
    return table if layers is not None else table[0]


def places_of(neurons: Int[Tensor, "neuron 2"]) -> Int[Tensor, " neuron"]:
    """The place of each neuron among those of its layer."""
    layer = neurons[:, 0].contiguous()
    return torch.arange(len(layer), device="cpu") - torch.searchsorted(layer, layer)


def all_neurons(layers: int, neurons: int) -> Int[Tensor, "neuron 2"]:
    """Layer and index of every neuron."""
    both = torch.meshgrid(torch.arange(layers, device="cpu"), torch.arange(neurons, device="cpu"), indexing="ij")
    return torch.stack([one.flatten() for one in both], 1)
