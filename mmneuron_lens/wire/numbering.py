"""Numbering: `sample` and `position` in the axes of each group of sites, made where something asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.layout import tower_positions
from mmneuron_lens.wire.types import BatchData, Group, Samples, SitePlan


def asks_for_samples(plans: list[SitePlan]) -> bool:
    """Whether anything is given `sample` or `position`."""
    return any(
        field in ("sample", "position") for plan in plans for act in plan["acts"] for field in act["fields"].values()
    )


def numbered(batch: BatchData, facts: Facts) -> BatchData:
    """The batch with the fields `sample` and `position` int64 `[*where]` in every group.

    Numbers are one per row of images, or one per prompt; what a row's prompts share is then of the first of them.
    """
    samples = batch.get("samples")
    assert samples is not None, "a batch of a run says which samples it has"
    fields = {name: dict(group) for name, group in batch["fields"].items()}
    spread, prompts = batch["sharing"].get("spread"), torch.tensor(samples["prompts"])
    by_prompt = len(samples["numbers"]) > len(prompts)
    first = prompts.cumsum(0) - prompts if by_prompt else torch.arange(len(prompts))
    rows = first
    if spread:
        # A row per prompt.
        rows = torch.arange(int(prompts.sum())) if by_prompt else first.repeat_interleave(prompts)
    places = {}
    for name in ("llm", "qformer.text"):
        if name in fields:
            weight = fields[name]["weight"]
            places[name] = (rows[:, None].expand(weight.shape), columns(weight))
    if by_prompt and not spread:
        places["llm"] = prompt_places(fields["llm"]["weight"], batch["inputs"]["position_ids"], samples["prompts"])
    if "vision" in fields:
        tiles = first[tile_samples(batch, facts, samples)]
        for name in ("vision", "projector"):
            each = fields[name]["weight"].shape[1]
            if facts["patches"]:
                places[name] = (tiles[:, None].expand(-1, each), within(tiles)[:, None] * each + torch.arange(each))
            else:
                own = tiles[None, :: tiles.shape[0] // each]
                places[name] = (own, within(own[0])[None])
        if facts["queries"]:
            for name in ("qformer.query", "projector"):
                weight = fields[name]["weight"]
                places[name] = (rows[:, None].expand(weight.shape), torch.arange(weight.shape[1]).expand(weight.shape))
        elif spread and facts["images_in_text"]:
            owner, place = (one[spread["rows"]] for one in places["projector"])
            if by_prompt:
                own = torch.tensor(samples["images"]).repeat_interleave(prompts)
                owner = rows.repeat_interleave(own)[:, None].expand(owner.shape)
            places["projector"] = (owner, place)
    numbers = torch.tensor(samples["numbers"], dtype=torch.int64)
    for name, (sample, position) in places.items():
        device = fields[name]["weight"].device
        fields[name]["sample"], fields[name]["position"] = numbers[sample].to(device), position.to(device)
    return {**batch, "fields": fields}


def with_answers_numbered(own: Group, before: Mapping[str, Tensor]) -> Group:
    """Fields of the language model over prompts and answers, numbered as those of the prompts were."""
    if "sample" not in before:
        return own
    weight = own["weight"]
    return {**own, "sample": before["sample"][:, :1].expand(weight.shape), "position": columns(weight)}


def columns(weight: Int[Tensor, "row column"]) -> Int[Tensor, "row column"]:
    """How many real columns each row has before each one; -1 for padding."""
    real = weight > 0
    return (real.cumsum(1) - 1).masked_fill(~real, -1)


def prompt_places(
    weight: Int[Tensor, "row column"], positions: Int[Tensor, "*axis row column"], prompts: Sequence[int]
) -> tuple[Int[Tensor, "row column"], Int[Tensor, "row column"]]:
    """Of rows in which prompts are packed: which prompt each column belongs to, and its place in that prompt alone.

    - weight: of a prefix the number of the row's prompts, 0 for padding
    - positions: restart where a prompt goes on behind the prefix
    - prompts: how many each row has; they are counted over all rows
    """
    owner, place = torch.zeros_like(weight), columns(weight)
    restarting, before = positions if positions.ndim == 2 else positions[0], 0
    for row, count in enumerate(prompts):
        owner[row], real = before, weight[row] > 0
        if count > 1:
            own = restarting[row][real]
            shared = int((weight[row] == count).sum())
            starts = torch.zeros_like(own, dtype=torch.bool)
            starts[1:] = own[1:] <= own[:-1]
            starts[:shared], starts[shared] = False, True
            edges = starts.nonzero()[:, 0]
            number = starts.cumsum(0) - 1
            there = torch.arange(len(own), device=own.device)
            owner[row, real] = before + number.clamp(min=0)
            place[row, real] = torch.where(number < 0, there, shared + there - edges[number.clamp(min=0)])
        before += count
    return owner, place


def tile_samples(batch: BatchData, facts: Facts, samples: Samples) -> Int[Tensor, " tile"]:
    """The place, among a batch's samples, of the one that each tile belongs to; each patch in a tower without tiles."""
    image = batch["fields"]["llm"]["kind"][..., 0].sum(1).tolist()
    counts = torch.tensor(tower_positions(batch["inputs"], facts, image))
    owners = torch.arange(len(samples["prompts"]))
    if facts["tiling"] != "several":
        # Counted by image; of several, by row.
        owners = owners.repeat_interleave(torch.tensor(samples["images"]))
    return owners.repeat_interleave(counts // facts["patches"] if facts["patches"] else counts)


def within(owners: Int[Tensor, " tile"]) -> Int[Tensor, " tile"]:
    """How many before it belong to the same sample; those of one sample stand together."""
    places = torch.arange(len(owners))
    owners = owners.contiguous()
    return places - torch.searchsorted(owners, owners)
