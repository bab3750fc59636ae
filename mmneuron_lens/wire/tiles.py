"""Tiles: how an image is cut for the vision tower, and how many positions that comes to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmneuron_lens.wire.facts_types import Facts, Tiles


def tiles_per_image(inputs: Mapping[str, Tensor], facts: Facts) -> list[int]:
    """How many rows of the vision tower each image takes: one, or its tiles on a grid without the padding ones."""
    pixels = inputs["pixel_values"]
    if facts["tiling"] == "one" or pixels.ndim == 4:
        return [1] * pixels.shape[0]
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sides = anyres_grid(facts)
    tiles = [image_size_to_num_patches(size.tolist(), *sides) for size in inputs["image_sizes"]]
    together = inputs.get("batch_num_images")
    if together is None:
        return tiles
    # LLaVA-OneVision cuts an image into tiles where it is the only one of its row.
    alone = [count == 1 for count in together.tolist() for _ in range(count)]
    return [count if one else 1 for count, one in zip(tiles, alone, strict=True)]


def anyres_grid(facts: Tiles) -> tuple[list[list[int]], int]:
    """Sizes that an image may be tiled into, and the side of a tile, in pixels. Raises `ValueError` without them."""
    if "grid_pinpoints" not in facts or "tile_size" not in facts:
        raise ValueError("This architecture's facts name no grid_pinpoints and tile_size, and its images are tiled.")
    return facts["grid_pinpoints"], facts["tile_size"]


def anyres_length(size: list[int], facts: Tiles) -> int:
    """LLaVA-NeXT: the base tile, then the unpadded grid of tiles with one newline position per row.

    - size: height and width in pixels.
    """
    rows, columns = detail_grid(size, facts)
    return facts["patches"] + rows * (columns + 1)


def detail_grid(size: list[int], facts: Tiles) -> tuple[int, int]:
    """Rows and columns of the patches of LLaVA-NeXT's larger tiles, padding left out. size: height, width in pixels."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = int(facts["patches"] ** 0.5)
    down, across = get_anyres_image_grid_shape(size, *anyres_grid(facts))
    rows, columns = down * side, across * side
    height, width = size
    # The image fills one direction; the same whole rows or columns at both ends of the other are padding.
    if width / height > columns / rows:
        scaled = int(round(height * (columns / width), 7))
        rows -= 2 * ((rows - scaled) // 2)
    else:
        scaled = int(round(width * (rows / height), 7))
        columns -= 2 * ((columns - scaled) // 2)
    return rows, columns


def longest_image(facts: Facts) -> int | None:
    """The most positions of the language model that an image can take, its tiles filling the largest grid; None where
    the facts do not say.
    """
    if facts["tiling"] not in ("one", "anyres"):
        return None
    side = int(facts["patches"] ** 0.5)
    grids = facts.get("grid_pinpoints", [])
    tile = facts.get("tile_size", 1)
    filled = [(height // tile * side) * (width // tile * side + 1) for height, width in grids]
    return facts["patches"] // facts["merged"] + max(filled, default=0)
