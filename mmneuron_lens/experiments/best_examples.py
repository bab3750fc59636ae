"""Best examples: the top activations of several domains as one ranking, of every image the best alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interventions import largest
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.top_activations import TopActivations
from mmneuron_lens.corpora.sample import Sample

_PARTS = ("activation", "sample", "position")


@dataclass(frozen=True, eq=False)
class BestExamples:
    """The examples of chosen neurons over all domains.

    - samples: every question that is an example; by the digest of its image, then domain and id.
    - neurons: by site int64 [neuron, 2].
    - activation, sample, position: by site [neuron, k], as of `NeuronExamples`; `sample` is a place in `samples`.
    """

    samples: tuple[Sample, ...]
    neurons: dict[str, Tensor]
    activation: dict[str, Tensor]
    sample: dict[str, Tensor]
    position: dict[str, Tensor]


def best_examples(
    tops: Sequence[TopActivations],
    samples_by_domain: Mapping[str, Sequence[Sample]],
    neurons: Mapping[str, Int[Tensor, "neuron 2"]],
    k: int,
) -> BestExamples:
    """One ranking of the k best of every domain's.

    - tops: of these neurons or more, one a domain.
    - samples_by_domain: those that were read, with the images they were asked with.

    Raises `InvalidValue` for top activations that lack a neuron, or keep fewer than k.
    """
    where = sorted(
        (image, one.domain, name, place, number)
        for place, one in enumerate(tops)
        for number, (name, image) in enumerate(zip(one.samples, one.images, strict=True))
    )
    numbers = [torch.zeros(len(one.samples), dtype=torch.int64, device="cpu") for one in tops]
    for overall, (_, _, _, place, number) in enumerate(where):
        numbers[place][number] = overall
    known = {image: number for number, image in enumerate(dict.fromkeys(image for image, *_ in where))}
    images = torch.tensor([known[image] for image, *_ in where], dtype=torch.int64, device="cpu")
    found = {site: _best(tops, numbers, images, site, own, k) for site, own in neurons.items()}
    used = torch.cat([one["sample"].flatten() for one in found.values()]).unique()
    used = used[used >= 0]
    by_id = {(domain, one.id): one for domain, some in samples_by_domain.items() for one in some}
    samples = tuple(by_id[where[number][1], where[number][2]] for number in used.tolist())
    for one in found.values():
        gone = one["sample"] < 0
        one["sample"] = torch.searchsorted(used, one["sample"].contiguous()).masked_fill(gone, -1)
        one["activation"] = one["activation"].masked_fill(gone, torch.nan)
    by_part = {part: {site: one[part] for site, one in found.items()} for part in _PARTS}
    return BestExamples(samples, dict(neurons), **by_part)


def _best(
    tops: Sequence[TopActivations],
    numbers: Sequence[Int[Tensor, " sample"]],
    images: Int[Tensor, " sample"],
    site: str,
    neurons: Int[Tensor, "neuron 2"],
    k: int,
) -> dict[str, Tensor]:
    sides: list[dict[str, Tensor]] = []
    for one, own in zip(tops, numbers, strict=True):
        rows = _rows(one, site, neurons)
        if one.parameters["k"] < k:
            raise InvalidValue(f"top activations of {one.domain} keep {one.parameters['k']}, not {k}; read them again.")
        sample = one.sample[site][rows].long()
        gone = sample < 0
        number = own[sample.clamp(min=0)]
        sides.append(
            {
                "activation": one.activation[site][rows].masked_fill(gone, -torch.inf),
                "sample": number.masked_fill(gone, -1),
                "position": one.position[site][rows].long(),
                "image": images[number].masked_fill(gone, -1),
            }
        )
    joined = {name: torch.cat([side[name] for side in sides], -1) for name in sides[0]}
    return largest(k, by="activation", distinct="image").alone(joined)


def _rows(top: TopActivations, site: str, neurons: Int[Tensor, "neuron 2"]) -> Int[Tensor, " neuron"]:
    """Where these neurons stand among those of the top activations."""
    held = top.neurons.get(site, torch.zeros(0, 2, dtype=torch.int64, device="cpu"))
    width = 1 + max(int(one[:, 1].max()) if len(one) else 0 for one in (held, neurons))
    keys, wanted = (one[:, 0] * width + one[:, 1] for one in (held, neurons))
    rows = torch.searchsorted(keys.contiguous(), wanted.contiguous()).clamp(max=max(len(keys) - 1, 0))
    lacking = (keys[rows] != wanted).nonzero() if len(keys) else torch.zeros(1, 1, dtype=torch.int64, device="cpu")
    if len(lacking):
        layer, neuron = neurons[int(lacking[0])].tolist()
        raise InvalidValue(f"top activations of {top.domain} lack {site} {layer}/{neuron}; read them again.")
    return rows
