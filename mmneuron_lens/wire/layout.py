"""Which position is what: `weight` and `kind` in the axes of each group of sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.tiles import tiles_per_image
from mmneuron_lens.wire.types import Fields, Group
from mmneuron_lens.wire.views import windowed_order


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
        fields |= before_the_llm(inputs, facts, (image & ~generated).sum(1).tolist())
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


def before_the_llm(
    inputs: Mapping[str, Tensor],
    facts: Facts,
    positions: Sequence[int],
    times: Sequence[int] | None = None,
    images: Sequence[int] | None = None,
) -> Fields:
    """Fields of the vision tower and the projector.

    - positions: image positions of each row of the language model
    - times: how often what each row's images pass through counts; once if left out
    - images: of each row, needed with `times`
    """
    merged, device = facts["merged"], inputs["input_ids"].device
    counts = torch.tensor(tower_positions(inputs, facts, positions))
    if times is None:
        each = torch.ones_like(counts)
    elif len(counts) == len(times):
        each = torch.tensor(times)
    else:
        each = torch.tensor([time for time, some in zip(times, images or (), strict=True) for _ in range(some)])
    if not facts["patches"]:
        # All patches of the batch in one row.
        weight = each.repeat_interleave(counts)[None].to(device)
        fields = {"vision": group(weight, [torch.zeros_like(weight, dtype=torch.bool), weight > 0])}
        fields["projector"] = group(weight[:, ::merged].contiguous(), [weight[:, ::merged] > 0])
        if facts["windows"]:
            fields["vision"]["order"] = windowed_order(inputs["image_grid_thw"], facts["windows"])[None].to(device)
        return fields
    tiles = each.repeat_interleave(counts // facts["patches"])[:, None].to(device)
    weight = tiles.expand(-1, facts["cls"] + facts["patches"]).contiguous()
    cls = torch.zeros_like(weight, dtype=torch.bool)
    cls[:, : facts["cls"]] = True
    merging = tiles.expand(-1, facts["patches"] // merged).contiguous()
    return {
        "vision": group(weight, [cls, ~cls]),
        "projector": group(merging, [torch.ones_like(merging, dtype=torch.bool)]),
    }


def tower_positions(inputs: Mapping[str, Tensor], facts: Facts, positions: Sequence[int]) -> list[int]:
    """How many patches each image has in the vision tower; of each row where its tiles follow from its positions."""
    if facts["tiling"] == "grid":
        return inputs["image_grid_thw"].prod(1).tolist()
    if facts["tiling"] == "sizes":
        return (inputs["image_sizes"] // facts["patch_size"]).prod(1).tolist()
    if facts["tiling"] == "several":
        return [count * facts["merged"] for count in positions]
    return [tiles * facts["patches"] for tiles in tiles_per_image(inputs, facts)]
