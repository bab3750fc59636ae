"""Which position is what: `weight` and `kind` in the axes of each group of sites."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmneuron_lens.wire.types import Facts, Fields, Group, Tiles


def lay_out(inputs: Mapping[str, Tensor], facts: Facts, prompt_length: int | None = None) -> Fields:
    """Fields by group: `{"llm": {"weight": int64 [rows, tokens], "kind": bool [rows, tokens, kinds]}, ...}`.

    `weight` is 0 for padding and 1 elsewhere; `kind` is one-hot in the order of `facts["kinds"][group]`.
    Columns from `prompt_length` on hold generated tokens.
    """
    ids = inputs["input_ids"]
    real = inputs["attention_mask"].long() if "attention_mask" in inputs else torch.ones_like(ids)
    image = ids == facts["image_token"]
    generated = torch.zeros_like(image)
    if prompt_length is not None:
        generated[:, prompt_length:] = True
    fields = {"llm": group(real, [image & ~generated, ~image & ~generated, generated])}
    if "pixel_values" in inputs:
        tiles = sum(tiles_per_image(inputs, facts))
        ones = torch.ones(tiles, facts["patches"] + 1, dtype=torch.int64, device=ids.device)
        cls = torch.zeros_like(ones, dtype=torch.bool)
        cls[:, 0] = True
        fields["vision"] = group(ones, [cls, ~cls])
        fields["projector"] = group(ones[:, 1:], [~cls[:, 1:]])
    if facts["queries"] and "pixel_values" in inputs:
        ones = torch.ones(ids.shape[0], facts["queries"], dtype=torch.int64, device=ids.device)
        fields["qformer.query"] = fields["projector"] = group(ones, [ones.bool()])
    if "qformer_input_ids" in inputs:
        words = inputs["qformer_input_ids"]
        real = inputs.get("qformer_attention_mask", torch.ones_like(words)).long()
        fields["qformer.text"] = group(real, [torch.ones_like(words, dtype=torch.bool)])
    return fields


def group(weight: Int[Tensor, "*where"], kinds: list[Bool[Tensor, "*where"]]) -> Group:
    return {"weight": weight, "kind": torch.stack(kinds, dim=-1)}


def tiles_per_image(inputs: Mapping[str, Tensor], facts: Facts) -> list[int]:
    """How many rows of the vision tower each image takes: one, or its anyres tiles without the padding ones."""
    pixels = inputs["pixel_values"]
    if pixels.ndim == 4:
        return [1] * pixels.shape[0]
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sides = anyres_grid(facts)
    return [image_size_to_num_patches(size.tolist(), *sides) for size in inputs["image_sizes"]]


def anyres_grid(facts: Tiles) -> tuple[list[list[int]], int]:
    """Sizes that an image may be tiled into, and the side of a tile, in pixels. Raises `ValueError` without them."""
    if "grid_pinpoints" not in facts or "tile_size" not in facts:
        raise ValueError("This architecture's facts name no grid_pinpoints and tile_size, and its images are tiled.")
    return facts["grid_pinpoints"], facts["tile_size"]


def image_lengths(inputs: Mapping[str, Tensor], facts: Facts) -> list[int]:
    """How many language model positions each image takes, in order (models that place images in the text)."""
    if "pixel_values" not in inputs:
        return []
    base = facts["patches"]
    if "image_sizes" not in inputs:
        return [base] * inputs["pixel_values"].shape[0]
    return [anyres_length(size.tolist(), facts) for size in inputs["image_sizes"]]


def anyres_length(size: list[int], facts: Tiles) -> int:
    """LLaVA-NeXT: the base tile, then the unpadded grid of tiles with one newline position per row."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = int(facts["patches"] ** 0.5)
    down, across = get_anyres_image_grid_shape(size, *anyres_grid(facts))
    rows, columns = down * side, across * side
    height, width = size
    if width / height > columns / rows:
        scaled = int(round(height * (columns / width), 7))
        rows -= 2 * ((rows - scaled) // 2)
    else:
        scaled = int(round(width * (rows / height), 7))
        columns -= 2 * ((columns - scaled) // 2)
    return facts["patches"] + rows * (columns + 1)


def longest_image(facts: Facts) -> int:
    """The most language model positions that one image can take: its tiles filling the largest grid."""
    side = int(facts["patches"] ** 0.5)
    grids = facts.get("grid_pinpoints", [])
    tile = facts.get("tile_size", 1)
    filled = [(height // tile * side) * (width // tile * side + 1) for height, width in grids]
    return facts["patches"] + max(filled, default=0)
