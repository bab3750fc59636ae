"""Images and texts to model inputs, through the model's own processor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.positions import answered, positions
from mmneuron_lens.wire.types import Inputs, Processor

TAKEN = (
    *("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"),
    *("image_sizes", "image_grid_thw", "batch_num_images", "qformer_input_ids", "qformer_attention_mask"),
)
"""What models take of what processors make, beside ids of their own; some make labels, counts and segments too."""


def completed(processor: Processor, missing: Mapping[str, Any]) -> Processor:
    """The processor with settings that its checkpoint lacks, by name; a copy, unless there are none."""
    if not missing:
        return processor
    made = copy.copy(processor)
    for name, value in missing.items():
        if name == "pad_token":
            made.tokenizer = copy.deepcopy(made.tokenizer)
            made.tokenizer.pad_token = value
        else:
            setattr(made, name, value)
    return made


def encode(processor: Processor, images: list[list[Image.Image]], texts: Sequence[str], facts: Facts) -> Inputs:
    """`images` is a list with one list of RGB pictures per text; returns a dict of tensors.

    Prompts are padded on the left, so that the last column is the last token of every row.
    """
    # The slow path of some processors reads the side from the tokenizer only.
    processor.tokenizer.padding_side = "left"
    made = processor(text=list(texts), return_tensors="pt", padding=True, **pictures_of(images, facts))
    taken = (*TAKEN, *facts["token_ids"])
    inputs = {name: value for name, value in made.items() if isinstance(value, torch.Tensor) and name in taken}
    if "qformer_input_ids" in inputs:
        # The Q-Former has absolute positions: padded on the left, a row would not compute what it does alone.
        to_the_left(inputs, "qformer_input_ids", "qformer_attention_mask")
    inputs["position_ids"] = positions(inputs, facts)
    return inputs


def pictures_of(images: list[list[Image.Image]], facts: Facts) -> dict[str, Any]:
    """The pictures as a processor takes them; batches without any have no pixel inputs at all."""
    flat = [picture for several in images for picture in several]
    if not flat:
        return {}
    return {"images": images if facts["nested"] else flat}


def to_the_left(inputs: Inputs, ids: str, mask: str) -> None:
    """Move the real tokens of every row to its start, in order."""
    order = inputs[mask].argsort(dim=1, descending=True, stable=True)
    inputs[ids], inputs[mask] = inputs[ids].gather(1, order), inputs[mask].gather(1, order)


def extend(inputs: Mapping[str, Tensor], answers: Int[Tensor, "row answer"], pad: int, facts: Facts) -> Inputs:
    """The inputs with `answers` (int64 `[rows, tokens]`, padded with `pad` on the right) appended: teacher forcing."""
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], answers], dim=1)
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], (answers != pad).long()], dim=1)
    for name, value in facts["token_ids"].items():
        if name in inputs:
            longer[name] = torch.cat([inputs[name], torch.full_like(answers, value)], dim=1)
    before = inputs["position_ids"]
    if before.ndim == 2:
        longer["position_ids"] = positions(longer, facts)
    else:
        longer["position_ids"] = torch.cat([before, answered(before, answers.shape[1])], dim=-1)
    return longer
