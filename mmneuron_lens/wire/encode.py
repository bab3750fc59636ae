"""Images and texts to model inputs, through the model's own processor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from mmneuron_lens.wire.types import Inputs, Processor


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


def encode(processor: Processor, images: list[list[Image.Image]], texts: Sequence[str]) -> Inputs:
    """`images` is a list with one list of RGB pictures per text; returns a dict of tensors.

    Prompts are padded on the left, so that the last column is the last token of every row.
    """
    # Batches without any image have no pixel inputs at all.
    pictures = [picture for several in images for picture in several]
    # The slow path of some processors reads the side from the tokenizer only.
    processor.tokenizer.padding_side = "left"
    options = {"images": pictures} if pictures else {}
    made = processor(text=list(texts), return_tensors="pt", padding=True, **options)
    inputs = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    # Some tokenizers hand back segment ids that none of these models takes.
    inputs.pop("token_type_ids", None)
    if "qformer_input_ids" in inputs:
        # The Q-Former has absolute positions: padded on the left, a row would not compute what it does alone.
        to_the_left(inputs, "qformer_input_ids", "qformer_attention_mask")
    inputs["position_ids"] = positions(inputs["attention_mask"])
    return inputs


def to_the_left(inputs: Inputs, ids: str, mask: str) -> None:
    """Move the real tokens of every row to its start, in order."""
    order = inputs[mask].argsort(dim=1, descending=True, stable=True)
    inputs[ids], inputs[mask] = inputs[ids].gather(1, order), inputs[mask].gather(1, order)


def positions(attention_mask: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """Positions that skip padding, as generation counts them, so that a padded row computes what it does alone."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def extend(inputs: Mapping[str, Tensor], answers: Int[Tensor, "row answer"], pad: int) -> Inputs:
    """The inputs with `answers` (int64 `[rows, tokens]`, padded with `pad` on the right) appended: teacher forcing."""
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], answers], dim=1)
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], (answers != pad).long()], dim=1)
    longer["position_ids"] = positions(longer["attention_mask"])
    return longer
