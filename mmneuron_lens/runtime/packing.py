"""Packing: many questions of one image at the price of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.lens import Lens, with_placeholders
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire import images
from mmneuron_lens.wire.pack import pack
from mmneuron_lens.wire.share import share


def can_pack(lens: Lens) -> bool:
    """Whether questions can share a row: images come before the question and do not depend on it, as in LLaVA.

    Elsewhere (InstructBLIP, BLIP-2) `packed` still shares the vision tower's pass.
    """
    return bool(lens.architecture.facts["images_in_text"])


def packed(lens: Lens, rows: Sequence[tuple[Sequence[Any], Sequence[str]]], *, cut: bool = False) -> Batch:
    """One batch of `(images, prompts)` rows: what the prompts of a row have in common is computed once.

    LLaVA family: one row each; its images and common prefix once, the questions behind it in the same row.
    InstructBLIP, BLIP-2: a row per prompt, as in `lens.encode`, but each image passes the vision tower once. Every
    position that several prompts share carries their number as its weight, so a graph that counts with weights counts
    what it would count one prompt at a time, but for float rounding at zero. Not for generation.

    cut: run prefixes of 512 positions and more, and their questions, one after the other behind a cache, which
    saves attention between all positions; then only reads that sum over positions fit, `over="sum"` or `"mean"`.
    Raises `ValueError` for a row without an image or prompt, or of several images where the architecture takes one.
    """
    if not all(some and prompts for some, prompts in rows):
        raise InvalidValue("Every packed row needs at least one image and one prompt.")
    pictures = [[images.decode(image) for image in some] for some, _ in rows]
    if can_pack(lens):
        token = lens.processor.image_token
        texts = [
            [with_placeholders(prompt, len(some), token) for prompt in prompts]
            for some, (_, prompts) in zip(pictures, rows, strict=True)
        ]
        additive = lens.dtype if lens.attention == "eager" else None
        inputs, fields, sharing = pack(lens.processor, pictures, texts, lens.architecture.facts, additive, cut)
        held = tuple(len(some) for some in pictures)
    else:
        if any(len(some) != 1 for some in pictures):
            counts = [len(some) for some in pictures]
            raise InvalidValue(f"{lens.architecture.name} takes exactly one image per text; these have {counts}.")
        texts = [list(prompts) for _, prompts in rows]
        inputs, fields, sharing = share(lens.processor, pictures, texts, lens.architecture.facts)
        held = (1,) * inputs["input_ids"].shape[0]
    return Batch(
        inputs=inputs,
        fields=fields,
        images=held,
        prompt_length=inputs["input_ids"].shape[1],
        facts=lens.architecture.facts,
        tokenizer=lens.processor.tokenizer,
        given=(tuple(tuple(some) for some, _ in rows), tuple(map(tuple, texts))),
        sharing=sharing,
    )
