"""Types of what an architecture says of itself: where a module holds a value, and what laying out a batch needs.

For annotations alone, as those in `wire.types`: none of them travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from torch import Tensor

Layer: TypeAlias = int | None
"""The index of a layer; None at a site without layers."""

Heads: TypeAlias = tuple[Literal["heads"], int]
"""Heads apart; their dimension."""

Columns: TypeAlias = tuple[Literal["columns"], int, int]
"""Columns of a fused projection: the first, and the one behind the last."""

Ordered: TypeAlias = tuple[Literal["ordered"], int]
"""Patches are held in another order than they come in; how many of them a position is made of."""

Whole: TypeAlias = tuple[Literal["rows", "packed", "mask"]]
"""`rows`: the model flattens rows and tokens. `packed`: it has the patches of all images in one row, without an axis
of rows. `mask`: of attention, as booleans."""

Step: TypeAlias = Heads | Columns | Ordered | Whole
"""A step from what a module holds to what a site shows."""


class Seeing(TypedDict):
    """What steps need to know. held: all inputs or outputs of the module. order: in which the tower holds patches."""

    held: Any
    layer: Layer
    rows: int
    order: Tensor | None


class Port(TypedDict):
    """Where a module holds the value, and the steps to what the site shows. item: index or attribute of its output, or
    name of its input."""

    at: Literal["output", "input", "keyword"]
    item: Any
    view: tuple[Step, ...]


class Tiles(TypedDict):
    """How an image is cut into tiles.

    - patches: of one tile, without CLS; 0 where a tile has no fixed size
    - grid_pinpoints: `[height, width]` in pixels of every grid of tiles that an image may be laid on
    - tile_size: width and height of a tile in pixels
    """

    patches: int
    grid_pinpoints: NotRequired[list[list[int]]]
    tile_size: NotRequired[int]


class Sharable(TypedDict):
    """When prompts in one row, or rows of one batch, compute what each computes alone.

    - apart: why prompts can never share a row; empty where they can
    - window: positions that a layer sees at least, itself among them; None where each sees all before it
    - rescaled: length of a row beyond which position embeddings depend on the batch's longest; None if they never do
    """

    apart: str
    window: int | None
    rescaled: int | None


Tiling: TypeAlias = Literal["one", "anyres", "several", "grid", "sizes"]
"""How the vision tower gets the images of a batch: one tile each; tiles on a grid of LLaVA-NeXT's; as many tiles as the
image's positions say; or all patches in one row, counted by `image_grid_thw`, or by `image_sizes` in pixels."""

Ending: TypeAlias = tuple[Literal["at", "behind"], str] | None
"""Where an image ends in a prompt: at this token, or with the run of image positions behind it. None: each run of image
positions is one image."""


class Facts(Tiles):
    """What encoding and laying out a batch need to know of an architecture; every reader has all of them.

    - image_token: the id of an image position
    - images_in_text: whether images stand in the text
    - text_only: whether there may be none
    - nested: whether the processor takes a list of images per text
    - around: what stands before and behind the placeholder of an image, where a text has none
    - ending: where one image ends
    - queries: of the Q-Former, 0 without one
    - cls: positions of the vision tower before a tile's patches
    - merged: patches that become one position of the projector and the language model
    - patch_size: of a patch, in pixels
    - tiling: how the vision tower gets images
    - windows: for a tower that holds patches window by window, see `views.windowed_order`
    - positions: "row" counts real tokens from `first`; "grid" gives image positions a row and a column of their own
    - sees_ahead: what attends to later positions too: the positions of one image, or all of a prompt
    - token_ids: ids beside `input_ids` that the model takes, by name, and what those of an answer are
    - kinds: of positions, by group of sites
    - vision_tower: path of the module that can run once per image, "" without one
    - sharable: what may share a row or a batch; without it, no prompts share a row
    - once: paths of the modules before the language model that copies of a batch can pass as one; none where that is
      not known
    """

    image_token: int
    images_in_text: bool
    text_only: bool
    nested: bool
    around: tuple[str, str]
    ending: Ending
    queries: int
    cls: int
    merged: int
    patch_size: int
    tiling: Tiling
    windows: Mapping[str, int]
    positions: Literal["row", "grid"]
    first: int
    sees_ahead: Literal["", "image", "prompt"]
    token_ids: Mapping[str, int]
    kinds: NotRequired[Mapping[str, tuple[str, ...]]]
    vision_tower: NotRequired[str]
    sharable: NotRequired[Sharable]
    once: NotRequired[tuple[str, ...]]
