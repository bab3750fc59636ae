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

    It holds where the tower's output depends on the picture alone and has one row a picture: facts name the tower.
    images: per image a list with its one RGB picture. texts: per image, its prompts. The sites of the vision tower
    see each image once and weigh as many times as it has prompts. Returns `(inputs, fields, sharing)`. Raises
    `ValueError` without such a tower.
    """
    if "vision_tower" not in facts:
        raise ValueError("This architecture's facts name no vision_tower that runs once an image; use lens.encode.")
    inputs = encode(processor, images, [text for some in texts for text in some], facts)
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
