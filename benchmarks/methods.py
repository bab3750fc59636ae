"""Ways of counting active neurons. Each is given a lens, `(image, question)` pairs, and the rows a batch may have."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import torch
from PIL import Image

from interventions import count_active_by_kind, count_positions
from mmneuron_lens import Lens
from mmneuron_lens.experiments.count import PACKED
from mmneuron_lens.runtime.batch import Batch

Work = list[tuple[Image.Image, str]]
GRAPH = count_active_by_kind.at("*.act") | count_positions.at("*.act")
LEAN = {"use_cache": False, "logits_to_keep": 1}


def neuron_modules(lens: Lens) -> list[torch.nn.Module]:
    paths = [path for site in lens.sites if site.endswith(".act") for _, path in lens.architecture.place(site).paths()]
    return [lens.module.get_submodule(path) for path in paths]


def published(lens: Lens, work: Work, rows: int) -> None:
    """The shape of the published loop: forwards patched, one sample at a time, all logits kept, int64 sums."""
    modules = neuron_modules(lens)
    counts: dict[int, torch.Tensor] = {}

    def patch(number: int, module: Any) -> None:
        before = module.forward

        def forward(value: torch.Tensor) -> torch.Tensor:
            out = before(value)
            counts[number] = counts.get(number, 0) + (out > 0).flatten(0, -2).sum(0)
            return out

        module.forward = forward

    for number, module in enumerate(modules):
        patch(number, module)
    try:
        with torch.no_grad():
            for image, question in work:
                batch = lens.encode([image], [question])
                lens.module(**batch.inputs)
    finally:
        for module in modules:
            del module.forward


def hooks(lens: Lens, work: Work, rows: int) -> None:
    """Plain forward hooks on padded batches, padding masked out where the language model has it."""
    counts: dict[int, torch.Tensor] = {}
    real = torch.ones(())

    def hook(number: int) -> Callable[..., None]:
        def count(_module: torch.nn.Module, _inputs: object, out: torch.Tensor) -> None:
            active = out > 0
            if active.shape[:2] == real.shape:
                active = active & real[..., None]
            counts[number] = counts.get(number, 0) + active.flatten(0, -2).sum(0)

        return count

    handles = [module.register_forward_hook(hook(number)) for number, module in enumerate(neuron_modules(lens))]
    try:
        with torch.inference_mode():
            for batch in _padded(lens, work, rows):
                real = batch.inputs["attention_mask"].bool()
                lens.module(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()


def bridge(lens: Lens, work: Work, rows: int) -> None:
    """TransformerLens' bridge around the same model, hooks at its neurons, padded batches; none at the projector."""
    bridged = _bridged(lens)
    names = [
        name
        for name in bridged.hook_dict
        # A gate is positive where its activation is.
        if name.endswith("mlp.gate.hook_out") or (name.startswith("vision") and name.endswith("mlp.out.hook_in"))
    ]
    counts: dict[str, torch.Tensor] = {}
    real = torch.ones(())

    def count(act: torch.Tensor, hook: Any) -> None:
        active = act > 0
        if active.shape[:2] == real.shape:
            active = active & real[..., None]
        counts[hook.name] = counts.get(hook.name, 0) + active.flatten(0, -2).sum(0)

    with torch.inference_mode():
        for batch in _padded(lens, work, rows):
            real = batch.inputs["attention_mask"].bool()
            inputs = dict(batch.inputs)
            ids = inputs.pop("input_ids")
            bridged.run_with_hooks(ids, return_type=None, fwd_hooks=[(name, count) for name in names], **inputs)


@cache
def _bridged(lens: Lens) -> Any:
    # Its loader would install torchvision by itself, a build that may not fit the torch that is here.
    os.environ["PIP_NO_INDEX"] = "1"
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        # A model that was never saved does not say what it is.
        lens.module.config.architectures = [type(lens.module).__name__]
        lens.module.config.save_pretrained(folder)
        dtype = next(lens.module.parameters()).dtype
        tokenizer = lens.processor.tokenizer
        return TransformerBridge.boot_transformers(folder, hf_model=lens.module, tokenizer=tokenizer, dtype=dtype)


def bare(lens: Lens, work: Work, rows: int) -> None:
    """Counts nothing: no cache, one position unembedded, inference mode. What counting is measured against."""
    with torch.inference_mode():
        for batch in _padded(lens, work, rows):
            lens.module(**batch.inputs, **LEAN)


def bare_packed(lens: Lens, work: Work, rows: int) -> None:
    """The same, packed and in the same parts as ours, in plain transformers."""
    with torch.inference_mode():
        for batch in _packs(lens, work):
            _plainly(lens.module, batch)


def ours_exact(lens: Lens, work: Work, rows: int) -> None:
    """`--exact`: one question a row, in padded batches."""
    lens.run(GRAPH, _padded(lens, work, rows))


def ours_packed(lens: Lens, work: Work, rows: int) -> None:
    """What identification does unless asked otherwise: the questions of an image share a row."""
    lens.run(GRAPH, _packs(lens, work))


BRIDGE = "TransformerLens' bridge"
"""Runs in an environment of its own."""

METHODS: dict[str, Callable[[Lens, Work, int], None]] = {
    "published loop": published,
    "plain hooks": hooks,
    BRIDGE: bridge,
    "bare lean forward": bare,
    "ours, exact": ours_exact,
    "bare lean forward, packed": bare_packed,
    "ours, packed": ours_packed,
}

SHARING = ("bare lean forward, packed", "ours, packed")
"""Methods whose time for a question depends on how many there are of its image."""


def _plainly(module: Any, batch: Batch) -> None:
    cuts = batch.sharing.get("cuts")
    if not cuts:
        module(**batch.inputs, **LEAN)
        return
    inputs = dict(batch.inputs)
    ids, positions, mask = (inputs.pop(name) for name in ("input_ids", "position_ids", "attention_mask"))
    first = cuts[0]
    real = (batch.fields["llm"]["weight"][:, :first] > 0).long()
    settings = {"use_cache": True, "logits_to_keep": 1}
    place = {"input_ids": ids[:, :first], "position_ids": positions[:, :first], "attention_mask": real}
    cache = module(**inputs, **place, **settings).past_key_values
    for start, end in pairwise(cuts):
        seen = torch.cat([mask[:, :, start:end, :first], mask[:, :, start:end, start:end]], dim=-1)
        place = {"input_ids": ids[:, start:end], "position_ids": positions[:, start:end], "attention_mask": seen}
        module(**place, past_key_values=cache, **settings)
        cache.crop(start - end)


def _padded(lens: Lens, work: Work, rows: int) -> Iterator[Batch]:
    for start in range(0, len(work), rows):
        some = work[start : start + rows]
        yield lens.encode([image for image, _ in some], [question for _, question in some])


def _packs(lens: Lens, work: Work) -> Iterator[Batch]:
    """A batch per image, or of several images up to 32 questions, as identification makes them."""
    batch: list[tuple[list[Image.Image], list[str]]] = []
    for _, group in groupby(work, key=lambda pair: id(pair[0])):
        some = list(group)
        for start in range(0, len(some), PACKED):
            row = some[start : start + PACKED]
            if batch and sum(len(texts) for _, texts in batch) + len(row) > 32:
                yield lens.pack(batch, cut=True)
                batch = []
            batch.append(([row[0][0]], [question for _, question in row]))
    if batch:
        yield lens.pack(batch, cut=True)
