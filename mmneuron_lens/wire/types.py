"""Types of what these functions hand to one another. They are read by people and type checkers; none of them travels.

Import them for annotations alone, which are left out of what is sent: a server has neither this file nor jaxtyping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, NotRequired, Protocol, TypeAlias, TypedDict

import numpy
import torch
from jaxtyping import Bool, Int, Shaped
from PIL import Image
from torch import Tensor

# The model.

Module: TypeAlias = Any
"""A torch module, or nnsight's envoy of one, which offers its children, `inputs` and `output`."""

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


class Tokens(Protocol):
    """What a tokenizer returns."""

    input_ids: list[list[int]]


class Tokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    padding_side: str
    pad_token: str | None
    pad_token_id: int | None

    def __call__(self, text: list[str], /) -> Tokens: ...


class Processor(Protocol):
    """The part of a checkpoint's processor that is used here."""

    tokenizer: Tokenizer
    image_token: str
    image_processor: Any

    def __call__(self, **settings: Any) -> Mapping[str, Any]: ...


# What is asked.

Key: TypeAlias = tuple[str, str]
"""The name of a read, and the site."""

Over: TypeAlias = Literal["sum", "mean", "list"]
Overs: TypeAlias = Mapping[Key, Over]
"""How each result is folded."""

Slice: TypeAlias = tuple[Literal["slice"], int | None, int | None, int | None]
"""The word, start, stop and step."""

Positions: TypeAlias = str | tuple[int, ...] | Slice | None
"""A kind of position, indices of columns, or a slice; None means all."""


Steps: TypeAlias = Literal["prompt", "generated", "all"] | tuple[int, ...]
"""When: a word, or indices of forward passes (0 is the prompt)."""


class Act(TypedDict):
    """What one intervention does at one site.

    - key: under which its results are kept
    - constants: arguments of the function by name, the same at every layer
    - per_layer: arguments whose first axis is the layer, where the site has layers
    - fields: arguments that are a field of the batch, by its name
    - modules: arguments that are modules, by their paths, applied in this order
    - layers: None means all
    """

    name: str
    key: Key
    mode: Literal["reads", "writes", "rewires"]
    over: Over | None
    function: Callable[..., Any]
    constants: dict[str, Any]
    per_layer: dict[str, Tensor]
    fields: dict[str, str]
    modules: dict[str, list[str]]
    layers: frozenset[int] | None
    positions: Positions
    steps: Steps
    all_beams: bool


class SitePlan(TypedDict):
    """All that happens at one site. stepped: whether it is reached at every step of a generation, or once."""

    site: str
    places: list[tuple[Layer, str]]
    port: Port
    group: str | None
    kinds: tuple[str, ...]
    stepped: bool
    acts: list[Act]


class Job(TypedDict):
    """What a run needs beside its plans.

    - generation: settings of `generate`, empty for a forward
    - logits: whether to keep them
    - pad, end: token ids
    - additive: the dtype of a packed batch's mask where attention adds it; None where the mask is booleans
    - missing: settings that the checkpoint's processor lacks, by name
    """

    generation: dict[str, Any]
    logits: bool
    facts: Facts
    pad: int
    end: int
    additive: torch.dtype | None
    missing: Mapping[str, Any]


class FoldedJob(Job):
    """A job whose batches become one result where the model is."""

    overs: Overs


# What it is asked about.

Picture: TypeAlias = str | PathLike[str] | bytes | bytearray | memoryview | Image.Image | numpy.ndarray
"""A path, the bytes of a file, a PIL image, or an array `[height, width]` or `[height, width, channel]`."""

Inputs: TypeAlias = dict[str, Tensor]
"""Arguments of the model's forward, as its processor makes them."""

Group: TypeAlias = dict[str, Tensor]
"""Fields along one group's axes: `weight` int64 `[*where]`, `kind` bool `[*where, kind]`, and the user's own."""

Fields: TypeAlias = dict[str, Group]
"""By group: `llm`, `vision`, `projector`, `qformer.query`, `qformer.text`."""


class Spread(TypedDict):
    """at: path of the module that sees each image once. rows: which image each text is about."""

    at: str
    rows: list[int]


class Sharing(TypedDict, total=False):
    """How rows share work. cuts: the columns at which a packed row runs in parts."""

    cuts: list[int]
    spread: Spread


class BatchData(TypedDict):
    """An encoded batch. prompt_length: columns before generated tokens."""

    inputs: Inputs
    fields: Mapping[str, Mapping[str, Tensor]]
    prompt_length: int
    sharing: Sharing


class Item(TypedDict):
    """A batch as files and words.

    - images: per text, or per pack of texts, its image files
    - texts: per row a prompt, or the list of prompts packed in it
    - extra: the user's own fields of the language model
    - cut: whether a packed row runs in parts
    """

    images: list[list[bytes]]
    texts: Sequence[str | list[str]]
    extra: dict[str, Tensor]
    cut: NotRequired[bool]


class PairedItem(Item):
    """A batch and, where the graph rewires, the one that values are taken from."""

    source: Item | None


class PackedRow(TypedDict):
    """Prompts of one row behind their common prefix, of `shared` columns; one entry per column in each."""

    ids: list[int]
    positions: Int[Tensor, "*axis row column"]
    weight: list[int]
    question: list[int]
    shared: int


Column: TypeAlias = Literal["ids", "weight", "question"]


# What comes of it.

Value: TypeAlias = Any
"""What a function returned: a tensor, number or text, or a list, tuple or dict of these."""

Results: TypeAlias = dict[Key, dict[Layer, list[Value]]]
"""What reads returned in one batch, by key and layer; an item per step, or per part of a packed row."""

Totals: TypeAlias = dict[Key, Value]
"""Results with layers stacked and steps joined; of one batch, or of all that were merged."""

Sources: TypeAlias = Mapping[tuple[str, Layer], Tensor]
"""What rewired sites held on the source batch, by site and layer."""


class Context(TypedDict):
    """What workers know of the batch under way. columns: under teacher forcing, the step of each column."""

    fields: Mapping[str, Mapping[str, Tensor]]
    rows: int
    beams: int
    sources: Sources
    columns: list[int] | None
    prompt_length: int


class Returned(TypedDict):
    """What a job sends back. answers: token ids, one tensor per row. logits: one tensor per batch."""

    values: Totals
    answers: list[Int[Tensor, " token"]]
    logits: list[Shaped[Tensor, "row token vocabulary"]]


class WeightFacts(TypedDict):
    """What tells one weight from another, in plain values.

    sampled: the bits of 64 values, evenly spaced from the first to the last, as integers. checksum: an exact integer
    over all bytes, the same on every kind of device. Both are None where the weight cannot be seen (the meta device).
    """

    name: str
    shape: list[int]
    dtype: str
    sampled: list[int] | None
    checksum: int | None


class Served(TypedDict):
    """What an NDIF server says of a model: its kind of device, "server" where a sandbox hides it, and its weights."""

    device: str
    weights: list[WeightFacts]


Chosen: TypeAlias = tuple[slice, list[int]] | Bool[Tensor, "row token"]
"""An index of the positions to act on: the same columns in every row, or a mask."""
