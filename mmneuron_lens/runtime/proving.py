"""Proving: each site read against a plain hook, changed, its effect on the logits seen; then every shortcut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from interventions import Graph, keep, writes
from mmneuron_lens.architectures import Place
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.agreement import prove_shortcuts
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.caching import reached
from mmneuron_lens.runtime.encoding import encode
from mmneuron_lens.runtime.run import run
from mmneuron_lens.runtime.shapes import site_shape
from mmneuron_lens.wire.views import see


@dataclass(frozen=True)
class Proof:
    """What was seen of one site: `moved` are the layers that moved the logits, `dead` those that did not."""

    site: str
    shape: tuple[int, ...]
    moved: tuple[int | None, ...]
    dead: tuple[int | None, ...]
    says: str


@writes("*")
def disturb(value: Tensor) -> Tensor:
    """A change that no normalisation undoes; of a mask, cutting everything but a position itself."""
    if value.dtype == torch.bool:
        offset = value.shape[-1] - value.shape[-2]
        return value & torch.ones_like(value).tril(offset).triu(offset)
    drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    noise = drawn.to(value)
    return value + noise * (1 + value.abs().mean())


def prove(model: Model, batch: Batch | None = None) -> list[Proof]:
    """Prove every site: right axes, equal to a plain hook, and that changing it moves the logits or cannot. Then prove
    every shortcut, as `prove_shortcuts` says.

    batch: what to run on; `example` if left out. Raises `AssertionError` naming the first site or shortcut that fails.
    """
    batch = (batch if batch is not None else example(model)).to(model.device)
    before = _logits(model, batch)
    proofs = [_prove(model, site, batch, before) for site in model.sites if reached(model, site, batch)]
    assert torch.equal(before, _logits(model, batch)), "the model's logits changed after the runs"
    prove_shortcuts(model, batch)
    return proofs


def example(model: Model) -> Batch:
    """Two drawn images of different sizes and two short questions."""
    noise = numpy.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 255, size, dtype=numpy.uint8)) for size in ((40, 56, 3), (64, 32, 3))]
    return encode(model, pictures, ["what is this?", "is it red?"])


def _prove(model: Model, site: str, batch: Batch, before: Tensor) -> Proof:
    place = model.architecture.place(site)
    values = _as_list(run(model, Graph((keep.at(site),)), [batch])[keep.name, site][0], place.layers)
    expected = site_shape(site, batch, model.architecture)
    for (layer, path), value in zip(place.paths(), values, strict=True):
        assert tuple(value.shape) == expected, f"{site} layer {layer}: shape {tuple(value.shape)}, not {expected}"
        seen = hooked(model, layer, path, place, batch)
        assert torch.equal(value, seen), f"{site} layer {layer}: not what a hook sees"
    if place.fixed:
        return Proof(site, expected, (), tuple(layer for layer, _ in place.paths()), place.fixed)
    moved: list[int | None] = []
    dead: list[int | None] = []
    # Rows of padding may hold anything; only real positions are the model's answer.
    real = batch.fields["llm"]["weight"].bool().cpu()
    for layer, _ in place.paths():
        change = disturb.at(site) if layer is None else disturb.at(site, layers=layer)
        logits = run(model, Graph((change,)), [batch], logits=True).logits[0]
        (dead if torch.equal(logits[real], before[real]) else moved).append(layer)
    said = [layer for layer, _ in place.paths() if not place.reaches(layer)]
    assert dead == said, f"{site}: layers {dead} do not reach the logits, but the table says {said}"
    return Proof(site, expected, tuple(moved), tuple(dead), place.why_dead)


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
