"""Proving: every shortcut, then each site read against a plain hook, changed, its effect on the logits seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from interventions import Graph, keep, writes
from interventions.errors import ProofFailed
from mmneuron_lens.architectures import Place
from mmneuron_lens.architectures.discovery import discover, misplaced, named
from mmneuron_lens.artifacts.certificate import Certificate, Comparison, Proof
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.agreement import asked_in, prove_shortcuts, require
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.caching import reached
from mmneuron_lens.runtime.encoding import encode
from mmneuron_lens.runtime.patch_order import in_order, order_of_patches
from mmneuron_lens.runtime.roles import prove_roles, prove_sums
from mmneuron_lens.runtime.run import run
from mmneuron_lens.runtime.shapes import site_shape
from mmneuron_lens.wire.views import see


@writes("*")
def disturb(value: Tensor) -> Tensor:
    """A change that no normalisation undoes; of a mask, cutting everything but a position itself."""
    if value.dtype == torch.bool:
        offset = value.shape[-1] - value.shape[-2]
        return value & torch.ones_like(value).tril(offset).triu(offset)
    drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    noise = drawn.to(value)
    return value + noise * (1 + value.abs().mean())


def prove(model: Model, batch: Batch | None = None) -> Certificate:
    """Prove that a model's sites are what they are called, and that every shortcut computes what it stands for.

    - neurons lie at activation modules, those of the language model in it
    - every shortcut, as `prove_shortcuts` says
    - patches stand in the order of the image
    - every site: right axes, equal to a plain hook, changing it moves the logits or cannot, and nothing before it
    - queries, keys, values and what is added to the residual stream do what they are called

    batch: what to run on; `example` if left out. Raises `ProofFailed` naming the first that fails.
    """
    batch = (batch if batch is not None else example(model)).to(model.device)
    found = discover(model.module)
    problem = misplaced(found, model.architecture)
    require(not problem, f"{problem}; correct the table")
    comparisons = [*prove_shortcuts(model, batch), _prove_order_of_patches(model, batch)]
    before = _logits(model, batch)
    reach = {site: reached(model, site, batch) for site in model.sites}
    read = [site for site, comes_by in reach.items() if comes_by]
    first = _first_layers(model, batch, read)
    comparisons += [*prove_sums(model, first), *prove_roles(model, batch, read)]
    proofs = [_prove(model, site, batch, before, first) for site in read]
    require(torch.equal(before, _logits(model, batch)), "the model's logits changed after the runs")
    return Certificate(
        model=model.name,
        architecture=model.architecture.name,
        sites=tuple(proofs),
        unread={site: _why_unread(site, batch) for site, comes_by in reach.items() if not comes_by},
        comparisons=tuple(comparisons),
        activations=named(found, model.architecture),
        # It cannot cite itself.
        provenance=provenance(**{name: fact for name, fact in model.facts().items() if name != "proof"}),
    )


def _why_unread(site: str, batch: Batch) -> str:
    if not site.startswith("llm.") and "vision" not in batch.fields:
        return "the batch has no image"
    return "weights of attention are returned under eager attention alone"


def example(model: Model) -> Batch:
    """Two drawn images of different sizes and two short questions."""
    noise = numpy.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 255, size, dtype=numpy.uint8)) for size in ((40, 56, 3), (64, 32, 3))]
    return encode(model, pictures, ["what is this?", "is it red?"])


def _prove(model: Model, site: str, batch: Batch, before: Tensor, first: Mapping[str, Tensor]) -> Proof:
    """Prove one site. `first` is what every site shows at its first layer, in forward order."""
    place = model.architecture.place(site)
    values = _as_list(run(model, Graph((keep.at(site),)), [batch])[keep.name, site][0], place.layers)
    expected = site_shape(site, batch, model.architecture)
    for (layer, path), value in zip(place.paths(), values, strict=True):
        _check_shape(model, site, batch, layer, value)
        seen = hooked(model, layer, path, place, batch)
        require(torch.equal(value, seen), f"{site} layer {layer}: not what a hook sees")
    if place.fixed:
        return Proof(site, expected, (), tuple(layer for layer, _ in place.paths()), place.fixed)
    moved: list[int | None] = []
    dead: list[int | None] = []
    # Rows of padding may hold anything; only real positions are the model's answer.
    real = batch.fields["llm"]["weight"].bool().cpu()
    sites = list(first)
    earlier = sites[: sites.index(site)]
    for layer, _ in place.paths():
        change = disturb.at(site) if layer is None else disturb.at(site, layers=layer)
        kept = [] if layer else earlier
        out = run(model, change | _keep_first(model, kept), [batch], logits=True)
        (dead if torch.equal(out.logits[0][real], before[real]) else moved).append(layer)
        for other in kept:
            value = _as_list(out[keep.name, other][0], model.architecture.place(other).layers)[0]
            require(torch.equal(value, first[other]), f"{site}: a change of it moved {other}, which comes before it")
    said = [layer for layer, _ in place.paths() if not place.reaches(layer)]
    require(dead == said, f"{site}: layers {dead} do not reach the logits, but the table says {said}")
    return Proof(site, expected, tuple(moved), tuple(dead), place.why_dead)


def _first_layers(model: Model, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
    """What each site shows, at its first layer where it has layers."""
    out = run(model, _keep_first(model, sites), [batch])
    found: dict[str, Tensor] = {}
    for site in sites:
        place = model.architecture.place(site)
        found[site] = _as_list(out[keep.name, site][0], place.layers)[0]
        _check_shape(model, site, batch, place.paths()[0][0], found[site])
    return found


def _keep_first(model: Model, sites: Sequence[str]) -> Graph:
    layered = [site for site in sites if model.architecture.place(site).layers is not None]
    single = [site for site in sites if site not in layered]
    graph = Graph((keep.at(layered, layers=0),)) if layered else Graph()
    return graph | keep.at(single) if single else graph


def _check_shape(model: Model, site: str, batch: Batch, layer: int | None, value: Tensor) -> None:
    expected = site_shape(site, batch, model.architecture)
    require(tuple(value.shape) == expected, f"{site} layer {layer}: shape {tuple(value.shape)}, not {expected}")


def _prove_order_of_patches(model: Model, batch: Batch) -> Comparison:
    """The queries of the first vision layer, of one prompt's images with some patches changed."""
    site, what = "vision.attention.q", "order of patches and of positions of the vision tower"
    if site not in model.sites:
        return Comparison(what, why_not=f"{model.architecture.name} has no site {site}")
    asked = [(images, text) for images, text in asked_in(batch) if images]
    if not asked:
        return Comparison(what, why_not="the batch has no image")
    place = model.architecture.place(site)
    layer, path = place.paths()[0]
    for images, text in asked:
        one = encode(model, [list(images)], [text]).to(model.device)
        found = order_of_patches(one, lambda changed: hooked(model, layer, path, place, changed))
        wrong = [
            (tile, position, patch)
            for tile, (seen, right) in enumerate(zip(found, in_order(one), strict=True))
            for position, (patch, own) in enumerate(zip(seen, right, strict=True))
            if patch != own
        ]
        if wrong:
            tile, position, _ = wrong[0]
            raise ProofFailed(
                f"{site}: position {position} of tile {tile} does not show its own patch of the image; "
                f"{len(wrong)} positions do not."
            )
    return Comparison(what, 0.0)


def _logits(model: Model, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.module(**batch.inputs).logits.cpu()


def hooked(model: Model, layer: int | None, path: str, place: Place, batch: Batch) -> Tensor:
    """What a site shows of the value that a plain torch hook sees at a place."""
    seen: list[tuple[Any, Any]] = []

    def see_module(module: Any, positional: Any, keywords: Any, output: Any = None) -> None:
        if place.at == "output":
            seen.append((output, output if place.item is None else output[place.item]))
        elif place.at == "keyword":
            seen.append(((positional, keywords), keywords.get(place.item)))
        else:
            seen.append(((positional, keywords), positional[0] if positional else keywords[place.item]))

    module = model.module.get_submodule(path)
    if place.at == "output":
        handle = module.register_forward_hook(see_module, with_kwargs=True)
    else:
        handle = module.register_forward_pre_hook(see_module, with_kwargs=True)
    try:
        with torch.no_grad():
            model.module(**batch.inputs)
    finally:
        handle.remove()
    held, value = seen[0]
    order = batch.fields.get("vision", {}).get("order")
    return see(value, place.view, {"held": held, "layer": layer, "rows": batch.rows, "order": order}).clone()


def _as_list(value: Any, layers: int | None) -> list[Tensor]:
    return [value] if layers is None else list(value)
