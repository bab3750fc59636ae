"""Share: one pass of the vision tower for all questions of an image, where the language model reads each apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from mmneuron_lens.wire.encode import encode
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.layout import lay_out
from mmneuron_lens.wire.pack import ask_together, stacked
from mmneuron_lens.wire.positions import positions
from mmneuron_lens.wire.types import Fields, Inputs, Module, Processor, Sharing


def share(
    processor: Processor, images: list[list[Image.Image]], texts: Sequence[Sequence[str]], facts: Facts
) -> tuple[Inputs, Fields, Sharing]:
    """A row per text, for models whose image positions depend on the question, or see it.

    It holds where the tower's output depends on the picture alone and has one row a picture: facts name the tower.
    images: per row of images, its RGB pictures; one each where they do not stand in the text. texts: per row of images,
    its prompts. The sites of the vision tower see each image once and weigh as many times as it has prompts. Returns
    `(inputs, fields, sharing)`. Raises `ValueError` without such a tower.
    """
    tower = facts.get("vision_tower")
    if not tower:
        raise ValueError("This architecture's facts name no vision_tower that runs once an image; use lens.encode.")
    counts = torch.tensor([len(some) for some in texts])
    sizes = torch.tensor([len(some) for some in images])
    first = sizes.cumsum(0) - sizes
    # By text, one after the other, the pictures that it is about.
    spread = [
        place
        for start, size, count in zip(first.tolist(), sizes.tolist(), counts.tolist(), strict=True)
        for _ in range(count)
        for place in range(start, start + size)
    ]
    if facts["images_in_text"]:
        inputs = asked_apart(processor, images, texts, facts)
    else:
        inputs = encode(processor, images, [text for some in texts for text in some], facts)
    fields = lay_out(inputs, facts)
    fields["vision"]["weight"] = fields["vision"]["weight"] * counts.repeat_interleave(sizes)[:, None]
    if facts["images_in_text"]:
        # What comes behind the tower runs once a text.
        fields["projector"] = {name: field[spread] for name, field in fields["projector"].items()}
    return inputs, fields, {"spread": {"at": tower, "rows": spread}}


def asked_apart(
    processor: Processor, images: list[list[Image.Image]], texts: Sequence[Sequence[str]], facts: Facts
) -> Inputs:
    """Inputs with a row per text, padded on the left, and each row of images prepared once."""
    asked = [ask_together(processor, some, row, facts) for some, row in zip(images, texts, strict=True)]
    inputs = stacked([pixels for _, pixels in asked])
    rows = [row for some, _ in asked for row in some]
    width = max(len(row["input_ids"]) for row in rows)
    padding = processor.tokenizer.pad_token_id
    for name in rows[0]:
        value = (padding or 0) if name == "input_ids" else 0
        inputs[name] = torch.tensor([[value] * (width - len(row[name])) + row[name] for row in rows])
    inputs["position_ids"] = positions(inputs, facts)
    return inputs


def spread_images(envoy: Module, rows: list[int]) -> None:
    """Make the vision tower return one row per text: `rows` says which image each text is about."""
    held = envoy.output
    envoy.output = type(held)(
        **{name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in held.items()}
    )
