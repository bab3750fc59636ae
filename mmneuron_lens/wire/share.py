"""Share: one pass of the vision tower for all questions of an image, where the language model reads each apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from mmneuron_lens.wire.encode import encode
from mmneuron_lens.wire.layout import lay_out
from mmneuron_lens.wire.types import Facts, Fields, Inputs, Module, Processor, Sharing


def share(
    processor: Processor, images: list[list[Image.Image]], texts: Sequence[Sequence[str]], facts: Facts
) -> tuple[Inputs, Fields, Sharing]:
    """A row per text, a picture per row of images, for models whose Q-Former reads the question.

    images: per image a list with its one RGB picture. texts: per image, its prompts. The sites of the vision tower
    see each image once and weigh as many times as it has prompts. Returns `(inputs, fields, sharing)`.
    """
    assert "vision_tower" in facts, "this architecture names no vision tower to share"
    inputs = encode(processor, images, [text for some in texts for text in some])
    fields = lay_out(inputs, facts)
    counts = torch.tensor([len(some) for some in texts])
    fields["vision"]["weight"] = fields["vision"]["weight"] * counts[:, None]
    rows = torch.arange(len(texts)).repeat_interleave(counts).tolist()
    return inputs, fields, {"spread": {"at": facts["vision_tower"], "rows": rows}}


def spread_images(envoy: Module, rows: list[int]) -> None:
    """Make the vision tower return one row per text: `rows` says which image each text is about."""
    held = envoy.output
    envoy.output = type(held)(
        **{name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in held.items()}
    )
