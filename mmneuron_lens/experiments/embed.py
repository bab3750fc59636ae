"""Embed: one vector an image from the vision encoder, and the first two principal components of all (Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from interventions import keep
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.embeddings import MEAN_OVER, Embeddings
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.batching.batches import Step, ids_of, sized, steps_of
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, concatenate, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite
from mmneuron_lens.wire.layout import tower_positions
from mmneuron_lens.wire.tiles import tiles_per_image

PATCHES = "the image's patches, of all tiles, after the last layer"
"""What is averaged where the tower pools nothing, for an artifact."""


def embed_images(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    batch_size: int = 32,
    frames: Frames = "fit",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> Embeddings:
    """The embedding of every image, each once however many questions it has.

    It is what the vision tower pools: of LLaVA-NeXT's tiles the overview's, which is the whole image. A tower that
    pools nothing (SigLIP's and all newer ones) gives the mean of the image's patches, of all its tiles, after the last
    layer; the artifact's parameters say which. Of several images to a question it is the first, or with frames "strip"
    all of them side by side. Raises `InvalidValue` when no image could be read, `NotFinite` for an
    embedding that is infinite or NaN.
    """
    left = LeftOut(problems)
    layered = "vision.pooled" not in lens.sites
    site = "vision.residual" if layered else "vision.pooled"
    steps: list[Step] = []
    for number, samples in enumerate(samples_by_domain.values()):
        asked = askable(lens, samples, "identification", problems)
        shown = asked if frames == "strip" else [replace(sample, images=sample.images[:1]) for sample in asked]
        # The embedding does not depend on the question; the shortest is the one that surely fits.
        once = {one.images: one for one in sorted(shown, key=lambda one: len(one.question), reverse=True)}
        made = steps_of(sized(once.values(), problems), batch_size, buckets=False)
        steps += [Step(number, step.samples) for step in made]

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, "identification", left, opened, frames)
        if batch is None:
            return Piece(step.group, {})
        (held,) = lens.run(keep.at(site, layers=-1 if layered else None), batch)["keep", site]
        vectors = (_mean_patches(held[0], batch) if layered else held[_overviews(batch)]).float().cpu()
        refuse_not_finite(site, vectors, lens.dtype, layered=False)
        return Piece(step.group, {"vectors": vectors.T.contiguous()}, ids_of(kept))

    held = gather(
        steps, run, concatenate, keeper=keeper or Memory(), left=left, title="embedding images", progress=progress
    )
    whole: dict[str, Tensor] = {}
    domains: list[str] = []
    for one in held:
        if one.piece.tensors:
            whole = concatenate(whole, one.piece.tensors) if whole else one.piece.tensors
            domains += [list(samples_by_domain)[one.piece.group]] * len(one.piece.seen)
    if not whole:
        raise InvalidValue("no image could be read; see the problems of the rows.")
    found = whole["vectors"].T.contiguous()
    facts: dict[str, Any] = {"site": site, "batch size": batch_size, "images": len(found)}
    facts |= {MEAN_OVER: PATCHES} if layered else {}
    facts |= (
        {"frames": frames} if any(len(one.images) > 1 for some in samples_by_domain.values() for one in some) else {}
    )
    return Embeddings(lens.name, found, tuple(domains), facts, provenance(**lens.model.facts()))


def _mean_patches(residual: Float[Tensor, "row patch hidden"], batch: Batch) -> Float[Tensor, "image hidden"]:
    """The mean of each image's patches, CLS left out; every row of the batch has one image."""
    spans = batch.fields["llm"]["kind"][..., 0].sum(1).tolist()
    counts = tower_positions(batch.inputs, batch.facts, spans)
    patches = residual[:, batch.facts["cls"] :].flatten(0, 1)
    return torch.stack([some.float().mean(0) for some in patches.split(counts)])


def _overviews(batch: Batch) -> list[int]:
    """The row of the vision tower's first tile of each image."""
    tiles = tiles_per_image(batch.inputs, batch.facts)
    return [sum(tiles[:number]) for number in range(len(tiles))]


def principal_components(
    vectors: Float[Tensor, "image hidden"], count: int = 2
) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
    """Coordinates [image, component] and shares of variance [component]: centred, not scaled, by SVD in float64.

    The sign of a component is free: here its largest loading is positive, so the same images give the same picture.
    """
    centred = vectors.double().numpy()
    centred = centred - centred.mean(axis=0)
    left, values, right = numpy.linalg.svd(centred, full_matrices=False)
    largest = numpy.abs(right[:count]).argmax(axis=1)
    signs = numpy.sign(right[numpy.arange(len(largest)), largest])
    total = float((values**2).sum())
    share = values[:count] ** 2 / total if total else numpy.zeros(count)
    return left[:, :count] * values[:count] * signs, share


def component_rows(found: Embeddings) -> list[dict[str, Any]]:
    """Figure 2 as rows: model, domain, first, second, and the shares of variance they hold."""
    points, share = principal_components(found.vectors)
    return [
        {"model": found.model, "domain": domain, "first": float(first), "second": float(second)}
        | {"first_share": float(share[0]), "second_share": float(share[1])}
        for domain, (first, second) in zip(found.domain_of, points, strict=True)
    ]
