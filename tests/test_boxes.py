"""Boxes of image positions: paint a rectangle of a picture, and see which positions of the prompt change.

The tower's attention is silenced, so that what a position is given depends on its own patches alone: the positions
that change are exactly those whose boxes meet the rectangle, but for the blur of the resizing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import newer_models
import numpy
import pytest
import tiny_models
import torch
from PIL import Image
from torch import Tensor

from interventions import keep, writes
from mmneuron_lens import Lens
from mmneuron_lens.runtime.patches import boxes_of

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SEEN_IN_TEXT = ("llava_next", "llava", *newer_models.ARCHITECTURES)
EMBEDDED = ("embedded/llava-next", "embedded/idefics3")
SIZES = [(160, 352), (384, 256), (300, 300), (150, 410)]
REACH = 4.0
"""Pixels of what the tower sees over which resizing blurs: Lanczos reaches 3, and an edge falls between two."""


@cache
def lens_of(name: str) -> Lens:
    if "/" in name:
        return Lens(name)
    return Lens.wrap(*getattr(tiny_models if hasattr(tiny_models, name) else newer_models, name)())


@writes("vision.attention.out")
def silent(value: Tensor) -> Tensor:
    return torch.zeros_like(value)


def given_to_the_llm(lens: Lens, batch: Any) -> Tensor:
    """What every position of the first row is embedded as: float [token, hidden]."""
    return lens.run(silent | keep.at("llm.embedding"), batch)["keep", "llm.embedding"][0][0]


def drawn(height: int, width: int, seed: int = 0) -> Image.Image:
    noise = numpy.random.default_rng(seed)
    return Image.fromarray(noise.integers(60, 190, (height, width, 3), dtype=numpy.uint8))


def rectangles(height: int, width: int) -> list[tuple[int, int, int, int]]:
    noise = numpy.random.default_rng(1)
    found = []
    for _ in range(6):
        left, top = int(noise.integers(0, width - 12)), int(noise.integers(0, height - 12))
        found.append((left, top, min(left + int(noise.integers(8, 40)), width), min(top + 12, height)))
    return [*found, (0, 0, 9, 9), (width - 9, height - 9, width, height)]


def meets(boxes: Tensor, rectangle: tuple[int, int, int, int], margin: Tensor | float) -> Tensor:
    """Whether each box, grown by a margin on all sides, shares an area with the rectangle."""
    left, top, right, bottom = boxes.unbind(-1)
    across = torch.minimum(right + margin, torch.tensor(float(rectangle[2]))) - torch.maximum(
        left - margin, torch.tensor(float(rectangle[0]))
    )
    down = torch.minimum(bottom + margin, torch.tensor(float(rectangle[3]))) - torch.maximum(
        top - margin, torch.tensor(float(rectangle[1]))
    )
    return (across > 0) & (down > 0)


def painted_positions(lens: Lens, images: list[Image.Image], number: int, rectangle: tuple[int, ...]) -> Tensor:
    """Which image positions of a row change when a rectangle of one of its pictures is inverted."""
    changed = images[number].copy()
    part = changed.crop(rectangle)
    changed.paste(Image.fromarray(255 - (numpy.asarray(part) > 125) * numpy.uint8(255)), rectangle[:2])
    before, after = (
        lens.encode([[*images[:number], one, *images[number + 1 :]]], ["which?"]) for one in (images[number], changed)
    )
    moved = (given_to_the_llm(lens, before) != given_to_the_llm(lens, after)).any(-1)
    return moved[before.positions("image", 0)]


def check(lens: Lens, images: list[Image.Image], number: int) -> None:
    batch = lens.encode([images], ["which?"])
    boxes = batch.boxes()
    columns = batch.positions("image", row=0)
    assert boxes.shape == (len(columns), 5)
    whose = [image for image, span in enumerate(batch.image_spans(0)) for _ in span]
    assert boxes[:, 0].tolist() == whose
    mine = (boxes[:, 0] == number) & ~boxes[:, 1:].isnan().any(-1)
    height, width = images[number].height, images[number].width
    assert mine.any()
    found = boxes[mine][:, 1:]
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2] <= width).all()
    assert (found[:, 3] <= height).all()
    side = patch_pixels(lens)
    for rectangle in rectangles(height, width):
        moved = painted_positions(lens, images, number, rectangle)
        assert not moved[~mine].any(), rectangle
        must = meets(found, rectangle, -1.0)
        # In pixels of the picture, what one pixel of the tower's is.
        scale = (found[:, 2:] - found[:, :2]).amax(-1).clamp(min=side) / side
        may = meets(found, rectangle, REACH * scale)
        assert moved[mine][must].all(), (rectangle, found[must & ~moved[mine]])
        assert not moved[mine][~may].any(), (rectangle, found[moved[mine] & ~may])


def patch_pixels(lens: Lens) -> float:
    """The side of what becomes one position, in pixels that the tower sees."""
    facts = lens.architecture.facts
    tower = lens.module.config.vision_config
    patch = tower.patch_size[0] if isinstance(tower.patch_size, list | tuple) else tower.patch_size
    return patch * facts["merged"] ** 0.5


@pytest.mark.parametrize("name", [*SEEN_IN_TEXT, *EMBEDDED])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_painted_rectangle_moves_the_positions_whose_boxes_it_meets(name, size):
    check(lens_of(name), [drawn(*size)], 0)


@pytest.mark.parametrize("name", [name for name in SEEN_IN_TEXT if name != "llava"])
def test_of_several_pictures_it_moves_its_own(name):
    check(lens_of(name), [drawn(160, 352), drawn(300, 200, 1)], 1)


def test_a_newline_and_a_query_have_no_place():
    lens = lens_of("llava_next")
    batch = lens.encode([drawn(64, 32)], ["why"])
    nowhere = batch.boxes()[:, 1:].isnan().any(-1)
    # The overview, then 8 rows of 4 patches, each behind it a newline.
    assert nowhere.nonzero().flatten().tolist() == [16 + 5 * row + 4 for row in range(8)]
    assert batch.boxes()[16].tolist() == [0, 0, 0, 8, 8]
    for name in ("instructblip", "blip2"):
        batch = lens_of(name).encode([drawn(64, 32), drawn(40, 40)], ["why", "what"])
        boxes = batch.boxes(1)
        assert boxes[:, 0].tolist() == [0] * 4
        assert boxes[:, 1:].isnan().all()
        assert boxes_of(batch, 1).isnan().all()


def test_shares_are_boxes_in_pictures_of_one_by_one():
    lens = lens_of("internvl")
    batch = lens.encode([[drawn(160, 352), drawn(300, 200)]], ["which?"])
    shares, boxes = boxes_of(batch), batch.boxes()
    is_image = torch.tensor([kind == "image" for kind in batch.kind[0]])
    assert shares[~is_image].isnan().all()
    sizes = torch.tensor([[352.0, 160, 352, 160], [200, 300, 200, 300]])[boxes[:, 0].long()]
    assert torch.equal(shares[is_image], torch.cat([boxes[:, :1], boxes[:, 1:] / sizes], dim=1))


def test_a_map_shows_the_smallest_box_over_the_middle_of_each_pixel():
    for name in ("llava_next", "idefics3", "qwen2_vl"):
        lens = lens_of(name)
        images = [drawn(75, 43), drawn(41, 66, 1)]
        batch = lens.encode([images[:1], images], ["why", "which of the two?"])
        for row, image in ((0, 0), (1, 0), (1, -1)):
            columns, boxes = batch.positions("image", row), batch.boxes(row).tolist()
            values = torch.arange(1.0, len(boxes) + 1)
            found = batch.patch_map(values, row, image)
            height, width = batch.picture_sizes(row)[image]
            assert found.shape == (height, width)
            number = image % len(batch.picture_sizes(row))
            for y in range(height):
                for x in range(width):
                    over = [
                        ((right - left) * (bottom - top), float(value))
                        for value, (whose, left, top, right, bottom) in zip(values, boxes, strict=True)
                        if whose == number and left <= x + 0.5 < right and top <= y + 0.5 < bottom
                    ]
                    due = {value for area, value in over if area <= min(over)[0] + 1e-3}
                    assert float(found[y, x]) in due or (not over and bool(found[y, x].isnan())), (name, row, y, x)
            # One value a column of the row is as good.
            whole = torch.full((batch.inputs["input_ids"].shape[1],), torch.nan, dtype=torch.bfloat16)
            whole[columns] = values.bfloat16()
            rounded = batch.patch_map(values.bfloat16(), row, image)
            assert torch.equal(batch.patch_map(whole, row, image).nan_to_num(-1), rounded.nan_to_num(-1))


def test_what_makes_no_map_is_refused():
    lens = lens_of("qwen2_vl")
    batch = lens.encode([drawn(32, 32)], ["why"])
    count, width = len(batch.positions("image", 0)), batch.inputs["input_ids"].shape[1]
    with pytest.raises(ValueError, match=rf"values is \[3\]; give \[{width}\], one for every column of the row, or "):
        batch.patch_map(torch.zeros(3))
    with pytest.raises(ValueError, match=rf"values is \[1, {count}\]; give"):
        batch.patch_map(torch.zeros(1, count))
    with pytest.raises(TypeError, match=r"values is a tensor, not list"):
        batch.patch_map([0.0] * count)
    with pytest.raises(IndexError, match=r"positions\(1\): this row has 1 images"):
        batch.patch_map(torch.zeros(count), image=1)
    with pytest.raises(IndexError, match=r"There is no row 1"):
        batch.patch_map(torch.zeros(count), row=1)
    with pytest.raises(TypeError, match=r"image is the number of a picture, not 'image'"):
        batch.patch_map(torch.zeros(count), image="image")
    batch = lens_of("instructblip").encode([drawn(64, 32)], ["why"])
    with pytest.raises(ValueError, match=r"image positions have no place in the picture, so there is no map"):
        batch.patch_map(torch.zeros(len(batch.positions("image", 0))))


def test_rows_that_share_an_image_have_the_boxes_of_each_alone():
    for name in ("llava_next", "paligemma"):
        lens = lens_of(name)
        images = [drawn(64, 32), drawn(40, 80)]
        packed = lens.pack([([image], ["what?", "why is it?"]) for image in images])
        rows = [0, 1] if packed.rows == 2 else [0, 2]
        for row, image in zip(rows, images, strict=True):
            alone = lens.encode([image], ["what?"])
            torch.testing.assert_close(packed.boxes(row), alone.boxes(), equal_nan=True, rtol=0, atol=0)


def test_positions_by_kind():
    lens = lens_of("qwen2_vl")
    batch = lens.encode([[drawn(32, 32), drawn(32, 64)], []], ["which of the two?", "why"])
    for row in range(2):
        for kind in ("image", "text", "generated", "padding"):
            expected = [column for column, one in enumerate(batch.kind[row]) if one == kind]
            assert batch.positions(kind, row) == batch.positions(kind)[row] == expected
    assert [len(batch.positions(number, row=0)) for number in (0, 1, -1)] == [4, 8, 8]
    assert batch.positions(0, 0) + batch.positions(1, 0) == batch.positions("image", -2)
    assert batch.boxes(1).shape == (0, 5)
    with pytest.raises(
        KeyError, match=r"There are no 'picture' positions. Choices: image, text, generated, padding, or"
    ):
        batch.positions("picture")
    with pytest.raises(IndexError, match=r"positions\(2\): this row has 2 images, counted from 0"):
        batch.positions(2, row=0)
    with pytest.raises(IndexError, match=r"There is no row 2; this batch has 2"):
        batch.boxes(2)
    with pytest.raises(TypeError, match=r"row is a whole number, not '0'"):
        batch.positions("image", "0")
    with pytest.raises(TypeError, match=r"positions takes a kind"):
        batch.positions(None)
