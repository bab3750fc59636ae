"""Boxes of the vision tower's positions: change a part of a picture, and see which positions of the tower change.

What the tower's first layer is given depends, position by position, on a patch alone. Plain hooks read it before and
after; the positions that change most must be those whose boxes hold the part, and what lies outside a box must not
matter to its position.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

import newer_models
import numpy
import pytest
import tiny_models
import torch
from PIL import Image
from test_boxes import REACH, check, drawn, meets, silent
from test_real_parts import tiny_dinov2, tiny_llama
from torch import Tensor

from interventions import Graph, batch_field, keep, reads
from mmneuron_lens import Batch, Lens
from mmneuron_lens.embedded.smol import assemble
from mmneuron_lens.runtime.patch_order import in_order, order_of_patches

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

RIMMED = ("llava_onevision rimmed", "llava_next rimmed", "llava_siglip rimmed", "idefics3 rimmed")
FIRST = {
    **dict.fromkeys(("llava_next", "llava", "embedded/llava-next"), "model.vision_tower.encoder.layers.0"),
    **dict.fromkeys(("instructblip", "blip2", "embedded/instructblip"), "vision_model.encoder.layers.0"),
    "embedded/idefics3": "model.vision_model.encoder.layers.0",
    "smol": "model.vision_tower.encoder.layer.0",
    # Its first layer is given patches window by window.
    "qwen2_5_vl": "model.visual.patch_embed",
    **dict.fromkeys(RIMMED[:3], "model.vision_tower.encoder.layers.0"),
    RIMMED[3]: "model.vision_model.encoder.layers.0",
    **{
        name: sites[0].split(".{l}.")[0] + ".0"
        for name, sites in newer_models.ARCHITECTURES.items()
        if name != "qwen2_5_vl"
    },
}
"""Of which module the value is read that has every position as the tower has it before its first layer."""

PAGE = Path(__file__).parent.parent / "docs" / "pictures.md"
WITH_QUERIES = ("instructblip", "blip2", "embedded/instructblip")
ONE_IMAGE = (*WITH_QUERIES, "llava")
LANDSCAPE, PORTRAIT, SQUARE = (150, 210), (230, 88), (120, 120)
PICTURES = {
    name: [drawn(*size, seed) for seed, size in enumerate(sizes)]
    for name, sizes in {
        "landscape": [LANDSCAPE],
        "portrait": [PORTRAIT],
        "three": [SQUARE, PORTRAIT, LANDSCAPE],
    }.items()
}
CASES = [(name, sizes) for name in FIRST for sizes in PICTURES if sizes != "three" or name not in ONE_IMAGE]

TRACE = 0.005
"""Of what changing all of the picture does: Idefics3 resizes two and three times, and a trace of it reaches further."""


class Stopped(Exception):
    """Raised in a hook: nothing behind it is needed."""


@cache
def lens_of(name: str) -> Lens:
    if "/" in name:
        return Lens(name)
    if name.endswith(" rimmed"):
        return Lens.wrap(*rimmed(name.removesuffix(" rimmed")))
    if name == "smol":
        return Lens.wrap(*assemble.join(tiny_dinov2(), tiny_llama(), tiny_models.tokenizer()))
    return Lens.wrap(*getattr(tiny_models if hasattr(tiny_models, name) else newer_models, name)())


def rimmed(name: str) -> tuple[torch.nn.Module, Any]:
    """A model whose tiles are no whole number of patches wide, as those of 384 pixels with patches of 14 are."""
    made, given = getattr(tiny_models if hasattr(tiny_models, name) else newer_models, name)()
    config, processor = copy.deepcopy(made.config), copy.deepcopy(given)
    config.vision_config.image_size = 36
    tile, grid = {"height": 36, "width": 36}, [[36, 72], [72, 36], [72, 72]]
    if name == "idefics3":
        own = {"size": {"longest_edge": 72}, "max_image_size": {"longest_edge": 36}}
    elif name == "llava_siglip":
        own = {"size": tile}
    else:
        config.image_grid_pinpoints = grid
        own = {"size": tile, "image_grid_pinpoints": grid} | ({"crop_size": tile} if name == "llava_next" else {})
    settings = processor.image_processor.to_dict()
    processor.image_processor = type(processor.image_processor)(**settings | own)
    return tiny_models.loud(type(made)(config)), processor


def embedded(name: str, rows: list[list[Image.Image]]) -> Tensor:
    """What the tower's first layer is given, by plain hooks: float32 [row, position, hidden], rows of equal sizes."""
    lens, found = lens_of(name), []
    module = lens.module.get_submodule(FIRST[name])

    def before(_, args, named):
        found.append(args[0] if args else named["hidden_states"])
        raise Stopped

    def behind(_, __, output):
        found.append(output)
        raise Stopped

    embeds = FIRST[name].endswith("patch_embed")
    hook = (
        module.register_forward_hook(behind) if embeds else module.register_forward_pre_hook(before, with_kwargs=True)
    )
    try:
        with torch.no_grad(), pytest.raises(Stopped):
            lens.module(**lens.encode(rows, ["which?"] * len(rows)).inputs)
    finally:
        hook.remove()
    return found[0].flatten(0, -2).float().unflatten(0, (len(rows), -1))


def inverted(image: Image.Image, part: tuple[int, ...], outside: bool = False) -> Image.Image:
    """The picture, dark where it was light and light where it was dark, inside a part or outside it."""
    left, top, right, bottom = part
    pixels = numpy.asarray(image)
    chosen = numpy.full(pixels.shape[:2], outside)
    chosen[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = not outside
    return Image.fromarray(numpy.where(chosen[..., None], 255 - (pixels > 125) * numpy.uint8(255), pixels))


def parts_of(box: Tensor, scale: Tensor) -> list[tuple[int, ...]]:
    """The middle of a box, and a part beside the middle of each edge. scale: across and down, of a pixel of the tower's
    in pixels of the picture.
    """
    left, top, right, bottom = box.tolist()
    x, y = scale.tolist()
    across, down = max(2 * x, 2), max(2 * y, 2)
    centre, middle = (left + right - across) / 2, (top + bottom - down) / 2
    places = [(centre, middle), (left + x, middle), (right - x - across, middle), (centre, top + y)]
    places.append((centre, bottom - y - down))
    return [(round(one), round(other), round(one + across), round(other + down)) for one, other in places]


def inside(boxes: Tensor, part: tuple[int, ...]) -> Tensor:
    """Which boxes hold all of a part."""
    left, top, right, bottom = part
    return (boxes[:, 0] <= left) & (boxes[:, 1] <= top) & (boxes[:, 2] >= right) & (boxes[:, 3] >= bottom)


def tiles_in(lens: Lens, boxes: Tensor, group: str = "vision") -> Tensor:
    """The tile of each position, counted over the row; the picture where the tower has no tiles."""
    facts = lens.architecture.facts
    if not facts["patches"]:
        return boxes[:, 0].long()
    each = facts["cls"] + facts["patches"] if group == "vision" else facts["patches"] // facts["merged"]
    return torch.arange(len(boxes)) // each


def scales_of(lens: Lens, boxes: Tensor) -> Tensor:
    """By position, across and down, how large a pixel that the tower sees is in the picture: [position, 2]."""
    patch = lens.module.config.vision_config.patch_size
    size = (boxes[:, 3:] - boxes[:, 1:3]).nan_to_num(0)
    tiles = tiles_in(lens, boxes)
    # Boxes are cut where the picture ends; the largest of a tile is whole.
    largest = torch.stack([size[tiles == tile].amax(0) for tile in tiles.unique()])
    return largest[tiles] / (patch[0] if isinstance(patch, list | tuple) else patch)


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_positions_change_with_what_their_boxes_hold(name, sizes):
    lens, images = lens_of(name), PICTURES[sizes]
    number = len(images) - 1
    image, before = images[number], images[:number]
    boxes = lens.encode([images], ["which?"]).tower_boxes()
    mine = (boxes[:, 0] == number) & ~boxes[:, 1:].isnan().any(-1)
    found, tiles, scales = boxes[:, 1:], tiles_in(lens, boxes), scales_of(lens, boxes)
    assert boxes.dtype == torch.float32
    assert (found[mine] >= 0).all()
    assert (found[mine, 2:] <= torch.tensor([float(image.width), image.height])).all()
    patch = lens.module.config.vision_config.patch_size
    side = patch[0] if isinstance(patch, list | tuple) else patch
    whole = mine & ((found[:, 2:] - found[:, :2]) > (side - 0.01) * scales).all(-1)
    # One of each tile, and of the tiles one more.
    drawing = numpy.random.default_rng(2)
    of_tiles = [(whole & (tiles == tile)).nonzero().flatten().tolist() for tile in tiles[whole].unique()]
    chosen = [int(drawing.choice(places)) for places in (of_tiles if len(of_tiles) > 1 else of_tiles * 2)]
    parts = [part for place in chosen for part in parts_of(found[place], scales[place])]
    margin = REACH * scales.max(-1).values
    grown = [
        [round(float(edge)) for edge in (*(found[place, :2] - margin[place]), *(found[place, 2:] + margin[place]))]
        for place in chosen
    ]
    changed = [inverted(image, (0, 0, image.width, image.height))]
    changed += [inverted(image, part) for part in parts]
    changed += [inverted(image, tuple(box), outside=True) for box in grown]
    seen = embedded(name, [images, *([*before, one] for one in changed)])
    assert seen.shape[1] == len(boxes)
    moved = (seen[1:] - seen[0]).norm(dim=-1)
    # All of the picture: every position that has a place in it, and no other.
    assert torch.equal(moved[0] > 0, mine)
    for part, change in zip(parts, moved[1 : 1 + len(parts)], strict=True):
        assert (change <= TRACE * moved[0])[~(mine & meets(found, part, margin))].all(), part
        holding = (mine & inside(found, part)).nonzero().flatten().tolist()
        assert holding, part
        for place in holding:
            assert int(change.where(tiles == tiles[place], 0).argmax()) == place, part
    for place, change in zip(chosen, moved[1 + len(parts) :], strict=True):
        assert change[place] <= TRACE * moved[0, place], place


@reads("vision.mlp.act", over="list", sample=batch_field("sample"), position=batch_field("position"))
def numbered(value: Tensor, sample: Tensor, position: Tensor) -> dict[str, Tensor]:
    return {"value": value.clone(), "sample": sample, "position": position}


def by_position(out: dict[str, Tensor], sample: int) -> Tensor:
    """What a site shows of a sample, in the order of the field `position`: [position, neuron]."""
    mine = out["sample"].flatten() == sample
    positions = out["position"].flatten()[mine]
    values = out["value"].flatten(0, -2)[mine]
    assert sorted(positions.tolist()) == list(range(len(values)))
    return values[positions.argsort()].float()


def some_of(boxes: Tensor, number: int) -> list[int]:
    """Places of three boxes of a picture, none of which is cut or of the overview."""
    mine = ((boxes[:, 0] == number) & ~boxes[:, 1:].isnan().any(-1)).nonzero().flatten()
    area = (boxes[mine, 3:] - boxes[mine, 1:3]).prod(-1)
    usual = mine[(area - area.median()).abs() < 0.01]
    return [int(usual[len(usual) * share // 6]) for share in (2, 3, 4)]


@pytest.mark.parametrize("name", FIRST)
def test_the_field_position_counts_boxes(name):
    """Read through a graph, the tower's attention silenced, so that a position depends on its own patches alone."""
    lens = lens_of(name)
    images = PICTURES["landscape" if name in ONE_IMAGE else "three"]
    number, groups = len(images) - 1, ["vision"] if name in WITH_QUERIES else ["vision", "projector"]
    reading: Graph = silent | numbered.at("vision.mlp.act", layers=0).named("vision")
    if "projector" in groups:
        reading = reading | numbered.at("projector.output").named("projector")
    rows = [PICTURES["portrait"], images]
    boxes = {group: lens.encode(rows, ["why", "which?"]).tower_boxes(1, group) for group in groups}
    chosen = [(group, place) for group in groups for place in some_of(boxes[group], number)]
    parts = [middle_of(boxes[group][place, 1:]) for group, place in chosen]
    batch = lens.encode(
        [*rows, *([*images[:-1], inverted(images[-1], part)] for part in parts)],
        ["why", *["which?"] * (1 + len(parts))],
    )
    out = lens.run(reading, batch)
    for sample, ((group, place), part) in enumerate(zip(chosen, parts, strict=True), 2):
        read = {key: value[0] if group == "vision" else value for key, value in out[group][0].items()}
        before, after = by_position(read, 1), by_position(read, sample)
        assert len(before) == len(boxes[group])
        assert len(by_position(read, 0)) == len(batch.tower_boxes(0, group))
        assert inside(boxes[group][:, 1:], part)[place]
        tiles = tiles_in(lens, boxes[group], group)
        moved = (after - before).norm(dim=-1)
        assert int(moved.where(tiles == tiles[place], 0).argmax()) == place, (group, place)


def middle_of(box: Tensor) -> tuple[int, ...]:
    """The middle ninth of a box."""
    third = (box[2:] - box[:2]) / 3
    return tuple(map(round, torch.cat([box[:2] + third, box[2:] - third]).tolist()))


def corners(boxes: Tensor) -> Tensor:
    """The smallest box around boxes: [4]."""
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])


@pytest.mark.parametrize("name", [name for name in FIRST if name not in WITH_QUERIES])
@pytest.mark.parametrize("sizes", PICTURES)
def test_what_is_merged_covers_what_it_was_merged_from(name, sizes):
    if sizes == "three" and name in ONE_IMAGE:
        sizes = "portrait"
    lens = lens_of(name)
    facts = lens.architecture.facts
    batch = lens.encode([PICTURES[sizes]], ["which?"])
    tower, projector, llm = batch.tower_boxes(), batch.tower_boxes(group="projector"), batch.boxes()
    patches = (
        tower[torch.arange(len(tower)) % (facts["cls"] + facts["patches"]) >= facts["cls"]] if facts["cls"] else tower
    )
    merged = facts["merged"]
    assert len(projector) * merged == len(patches)
    if facts["tiling"] == "grid":
        groups = patches.view(-1, merged, 5)
    else:
        groups = in_squares(patches, isqrt(merged), facts["patches"], batch)
    for one, some in zip(projector, groups, strict=True):
        placed = some[~some[:, 1:].isnan().any(-1)]
        if len(placed):
            torch.testing.assert_close(one[1:], corners(placed[:, 1:]), rtol=0, atol=1e-3)
        else:
            assert one[1:].isnan().all()
    if facts["tiling"] != "anyres":
        torch.testing.assert_close(projector, llm, rtol=0, atol=1e-3, equal_nan=True)
        return
    each = facts["patches"]
    torch.testing.assert_close(projector[:each], llm[:each], rtol=0, atol=1e-3)
    if name.startswith("llava_onevision") and sizes != "three":
        # Its grid is too large, and made smaller for the language model.
        return
    # The language model is not given lines of patches that are padding in part, where they have a partner to go with.
    left, given = (
        {tuple(box) for box in some.round(decimals=2).tolist()} for some in (placed_in(projector), placed_in(llm))
    )
    assert given <= left
    for number, x, y, right, bottom in left - given:
        details = placed_in(projector[projector[:, 0] == number][each:])
        wide, high = (details[:, 3:] - details[:, 1:3]).amax(0).tolist()
        assert right - x < wide - 0.01 or bottom - y < high - 0.01


def placed_in(boxes: Tensor) -> Tensor:
    """Those that have a place."""
    return boxes[~boxes.isnan().any(-1)]


def in_squares(patches: Tensor, merged: int, each: int, batch: Batch) -> Tensor:
    """Patches that stand row by row in each tile, or picture, by what they become: [position, patch, 5]."""
    if each:
        shapes = [(isqrt(each), isqrt(each))] * (len(patches) // each)
    else:
        shapes = [
            (height, width) for height, width in (batch.inputs["image_sizes"] // batch.facts["patch_size"]).tolist()
        ]
    found, start = [], 0
    for rows, columns in shapes:
        grid = patches[start : start + rows * columns].view(rows // merged, merged, columns // merged, merged, 5)
        found.append(grid.transpose(1, 2).reshape(-1, merged**2, 5))
        start += rows * columns
    return torch.cat(found)


@pytest.mark.parametrize("name", RIMMED)
def test_what_is_left_over_of_a_tile_is_in_no_position_of_a_prompt(name):
    check(lens_of(name), [drawn(150, 210)], 0)


def test_a_map_shows_the_smallest_box_over_the_middle_of_each_pixel():
    for name in ("llava_next", "idefics3", "qwen2_5_vl", "instructblip"):
        lens = lens_of(name)
        images = [drawn(75, 43)] if name in ONE_IMAGE else [drawn(75, 43), drawn(41, 66, 1)]
        batch = lens.encode([images], ["which of the two?"])
        boxes = batch.tower_boxes()
        values = torch.rand(len(boxes))
        found = batch.tower_map(values, 0, -1)
        height, width = batch.picture_sizes(0)[-1]
        assert found.shape == (height, width)
        assert found.dtype == torch.float32
        for y, x in ((0, 0), (height - 1, width - 1), *torch.randint(0, 41, (60, 2)).tolist()):
            over = boxes[:, 0] == len(images) - 1
            over &= (
                (boxes[:, 1] <= x + 0.5) & (boxes[:, 3] > x + 0.5) & (boxes[:, 2] <= y + 0.5) & (boxes[:, 4] > y + 0.5)
            )
            area = (boxes[:, 3:] - boxes[:, 1:3]).prod(-1)
            due = values[over & (area <= area[over].min() + 1e-3)]
            assert found[y, x] in due, (name, y, x)
        tiles = 1 if name == "qwen2_5_vl" else int(tiles_in(lens, boxes).max()) + 1
        assert torch.equal(batch.tower_map(values.view(tiles, -1), 0, -1), found)
        if name not in WITH_QUERIES:
            count = len(batch.tower_boxes(group="projector"))
            assert not batch.tower_map(torch.ones(count, dtype=torch.bfloat16), group="projector").isnan().any()


def test_what_has_no_place_is_said_to_have_none():
    batch = lens_of("llava_next").encode([drawn(64, 32)], ["why"])
    # By tile CLS and 16 patches: the overview, then two tiles above each other.
    assert batch.tower_boxes().isnan().any(-1).nonzero().flatten().tolist() == [0, 17, 34]
    assert batch.tower_boxes()[[1, 18, 35], 1:].tolist() == [[0, 0, 8, 16], [0, 0, 8, 8], [0, 32, 8, 40]]
    # A picture of 20 by 60 is 32 by 64 there, of which rows above and below its 21.3 are padding.
    batch = lens_of("llava_next").encode([drawn(10, 60)], ["why"])
    above = batch.tower_boxes()[18:34, 1:].isnan().any(-1).view(4, 4)
    assert above.tolist() == [[True] * 4, [False] * 4, [False] * 4, [True] * 4]
    batch = lens_of("instructblip").encode([drawn(64, 32)], ["why"])
    assert batch.tower_boxes()[0].isnan().tolist() == [False, True, True, True, True]
    assert batch.tower_boxes(group="projector").shape == (4, 5)
    assert batch.tower_boxes(group="projector")[:, 1:].isnan().all()
    # The middle of the picture, as large as its shorter side.
    left, top, right, bottom = (
        lens_of("llava").encode([drawn(50, 100)], ["why"]).tower_boxes()[[1, 16], 1:].flatten().view(2, 4).T
    )
    assert (left[0], top[0], right[1], bottom[1]) == (25, 0, 75, 50)


def test_a_picture_that_is_made_smaller_and_then_padded_to_a_square():
    # 81 pixels wide of 200 is 13 of 32, from 9 on: 7 of them in the second patch, 6 in the third.
    boxes = lens_of("deepseek_vl").encode([drawn(200, 81)], ["why"]).tower_boxes()[:, 1:]
    assert boxes[[0, 3]].isnan().all()
    expected = torch.tensor([[0, 0, 81 * 7 / 13, 50], [81 * 7 / 13, 0, 81, 50], [81 * 7 / 13, 150, 81, 200]])
    torch.testing.assert_close(boxes[[1, 2, 14]], expected)
    # 20 pixels wide it would be 3, and is made 8, the least.
    boxes = lens_of("deepseek_vl").encode([drawn(200, 20)], ["why"]).tower_boxes()[:, 1:]
    assert boxes[[1, 2]].tolist() == [[0, 0, 10, 50], [10, 0, 20, 50]]


def test_patches_of_tiles_with_something_left_over_stand_in_order():
    lens = lens_of("llava_next rimmed")
    batch = lens.encode([drawn(64, 32)], ["why"])

    def read(some: Batch) -> Tensor:
        return lens.run(keep.at("vision.attention.q", layers=0), some)["keep"][0][0]

    assert order_of_patches(batch, read) == in_order(batch)


def test_rows_without_pictures_and_packed_rows():
    lens = lens_of("qwen2_vl")
    batch = lens.encode([[], [drawn(32, 32)]], ["why", "which?"])
    assert batch.tower_boxes(0).shape == (0, 5)
    assert batch.tower_boxes(1).shape == (16, 5)
    with pytest.raises(IndexError, match=r"There is no image 0; this row has 0, counted from 0"):
        batch.tower_map(torch.zeros(0))
    for name in ("llava_next", "idefics3", "paligemma", "instructblip"):
        lens = lens_of(name)
        own = [drawn(64, 32)] if name in ONE_IMAGE else [drawn(64, 32), drawn(50, 90, 1)]
        rows = [([drawn(40, 80)], ["what?"]), (own, ["what?", "why is it?"])]
        packed = lens.pack(rows)
        assert packed.rows == (2 if name in ("llava_next", "idefics3") else 3)
        for row in range(packed.rows):
            images = rows[min(row, 1)][0]
            alone = lens.encode([images], ["what?"])
            assert packed.picture_sizes(row) == [(image.height, image.width) for image in images]
            for group in ("vision", "projector"):
                expected = alone.tower_boxes(group=group)
                torch.testing.assert_close(packed.tower_boxes(row, group), expected, equal_nan=True, rtol=0, atol=0)
            torch.testing.assert_close(packed.boxes(row), alone.boxes(), equal_nan=True, rtol=0, atol=0)


def test_what_makes_no_tower_map_is_refused():
    batch = lens_of("qwen2_vl").encode([drawn(32, 32)], ["why"])
    with pytest.raises(ValueError, match=r"values is \[3\]; give \[16\], one for every position of the row's pictures"):
        batch.tower_map(torch.zeros(3))
    with pytest.raises(ValueError, match=r"values is \[16\]; give \[4\]"):
        batch.tower_map(torch.zeros(16), group="projector")
    with pytest.raises(TypeError, match=r"values is a tensor, not list"):
        batch.tower_map([0.0] * 16)
    with pytest.raises(TypeError, match=r"image is the number of a picture, not 'image'"):
        batch.tower_map(torch.zeros(16), image="image")
    with pytest.raises(IndexError, match=r"There is no image 1; this row has 1, counted from 0"):
        batch.tower_map(torch.zeros(16), image=1)
    with pytest.raises(IndexError, match=r"There is no row 1"):
        batch.tower_boxes(1)
    with pytest.raises(KeyError, match=r"tower_boxes knows no group 'llm'. Choices: vision, projector"):
        batch.tower_boxes(group="llm")
    batch = lens_of("blip2").encode([drawn(64, 32)], ["why"])
    with pytest.raises(ValueError, match=r"projector positions have no place in the picture"):
        batch.tower_map(torch.zeros(4), group="projector")


def test_the_page_on_pictures_shows_where_a_neuron_is_most_active():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {"lens": lens_of("llava_next"), "picture": drawn(150, 210)}
    exec(compile(code, PAGE.name, "exec"), scope)
    boxes, act = scope["batch"].tower_boxes(), scope["act"][..., scope["neuron"]].flatten()
    assert act[scope["place"]] == act.max()
    assert boxes[scope["place"]].nan_to_num(-1).tolist() == [
        -1 if edge != edge else edge for edge in (scope[name] for name in ("image", "left", "top", "right", "bottom"))
    ]
    assert scope["heat"].shape == (150, 210)
    assert scope["heat"].max() == act[17:][~boxes[17:].isnan().any(-1)].max()
