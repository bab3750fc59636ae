"""Packing: many questions of one image at the price of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmneuron_lens.batch import Batch
from mmneuron_lens.lens import Lens, with_placeholders
from mmneuron_lens.wire import images
from mmneuron_lens.wire.pack import pack


def can_pack(lens: Lens) -> bool:
    """Whether questions can share a forward: images come before the question and do not depend on it, as in LLaVA."""
    return bool(lens.anatomy.facts["images_in_text"])


def packed(lens: Lens, rows: Sequence[tuple[Sequence[Any], Sequence[str]]]) -> Batch:
    """One batch of `(images, prompts)` rows: each row's images and common prefix are computed once.

    Every position of the prefix, and every vision site, carries the number of prompts as its weight, so a graph that
    counts with weights counts what it would count one prompt at a time, but for float rounding at zero. Not for
    generation. Raises `ValueError` for an architecture that cannot pack, or a row without an image.
    """
    if not can_pack(lens):
        raise ValueError(f"{lens.anatomy.architecture} reads the question before the language model; it cannot pack.")
    if not all(some and prompts for some, prompts in rows):
        raise ValueError("Every packed row needs at least one image and one prompt.")
    pictures = [[images.decode(image) for image in some] for some, _ in rows]
    token = lens.processor.image_token
    texts = [
        [with_placeholders(prompt, len(some), token) for prompt in prompts]
        for some, (_, prompts) in zip(pictures, rows, strict=True)
    ]
    additive = lens.dtype if lens.attention == "eager" else None
    inputs, fields = pack(lens.processor, pictures, texts, lens.anatomy.facts, additive)
    return Batch(
        inputs=inputs,
        fields=fields,
        images=tuple(len(some) for some in pictures),
        prompt_length=inputs["input_ids"].shape[1],
        facts=lens.anatomy.facts,
        tokenizer=lens.processor.tokenizer,
        given=(tuple(tuple(some) for some, _ in rows), tuple(map(tuple, texts))),
    )
