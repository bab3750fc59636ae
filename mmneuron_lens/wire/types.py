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

from mmneuron_lens.wire.facts_types import Facts, Layer, Port, Seeing, Step
from mmneuron_lens.wire.fold_types import Over

# The model.

Module: TypeAlias = Any
"""A torch module, or nnsight's envoy of one, which offers its children, `inputs` and `output`."""


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

Overs: TypeAlias = Mapping[Key, Over]
"""How each result is folded."""

Slice: TypeAlias = tuple[Literal["slice"], int | None, int | None, int | None]
"""The word, start, stop and step."""

Positions: TypeAlias = str | tuple[int, ...] | Slice | None
"""A kind of position, indices of columns, or a slice; None means all."""


Steps: TypeAlias = Literal["prompt", "generated", "all"] | tuple[int, ...]
"""When: a word, or indices of forward passes (0 is the prompt)."""


class Wanted(TypedDict):
    """The value of a site that an intervention elsewhere is given.

    layered: whether it is that of the same layer, or the site has none. alike: whether it has the positions of the
    value acted on. source: whether it is that of the source batch.
    """

    site: str
    layered: bool
    alike: bool
    source: bool


class Act(TypedDict):
    """What one intervention does at one site.

    - key: under which its results are kept
    - constants: arguments of the function by name, the same at every layer
    - per_layer: arguments whose first axis is the layer, where the site has layers
    - fields: arguments that are a field of the batch, by its name
    - modules: arguments that are modules, by their paths, applied in this order
    - values: arguments that are the value of a site
    - gradients: arguments that are the gradient of a target, by the key of the target's act
    - layers, rows: None means all
    - copy: which copy of the batch its rows are of, where the graphs of several copies share a forward
    """

    name: str
    key: Key
    mode: Literal["reads", "writes", "rewires", "targets"]
    over: Over | None
    function: Callable[..., Any]
    constants: dict[str, Any]
    per_layer: dict[str, Tensor]
    fields: dict[str, str]
    modules: dict[str, list[str]]
    values: dict[str, Wanted]
    gradients: dict[str, Key]
    layers: frozenset[int] | None
    positions: Positions
    steps: Steps
    rows: tuple[int, ...] | None
    copy: int
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
    - ends: ids of the tokens that end an answer
    - additive: the dtype of a packed batch's mask where attention adds it; None where the mask is booleans
    - missing: settings that the checkpoint's processor lacks, by name
    - between: shares of the way from the source batch to the batch, at whose points gradients are taken and averaged
    """

    generation: dict[str, Any]
    logits: bool
    facts: Facts
    pad: int
    end: int
    ends: list[int]
    additive: torch.dtype | None
    missing: Mapping[str, Any]
    between: NotRequired[list[float]]


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
    """How rows share work.

    - cuts: the columns at which a packed row runs in parts
    - copies: of the batch, one after the other, each with interventions of its own
    - once: paths of modules that all copies pass together, as one
    - answers: under teacher forcing, the tokens of each copy's longest answer
    """

    cuts: list[int]
    spread: Spread
    copies: int
    once: list[str]
    answers: list[int]


class Belonging(TypedDict):
    """Which part of the vision tower's values belongs to each row of the batch, one after the other.

    axis: of tiles, or of patches where all stand in one row. counts: of these, by row; none where rows share them.
    """

    axis: int
    counts: list[int]


class Samples(TypedDict):
    """The samples of a batch, in order: their numbers, and how many images and prompts each has."""

    numbers: Sequence[int]
    images: Sequence[int]
    prompts: Sequence[int]


class BatchData(TypedDict):
    """An encoded batch. prompt_length: columns before generated tokens."""

    inputs: Inputs
    fields: Mapping[str, Mapping[str, Tensor]]
    prompt_length: int
    sharing: Sharing
    samples: NotRequired[Samples]
    tower: Belonging


class Item(TypedDict):
    """A batch as files and words.

    - images: per text, or per pack of texts, its image files
    - texts: per row a prompt, or the list of prompts packed in it
    - extra: the user's own fields of the language model
    - cut: whether a packed row runs in parts
    - answers: token ids that stand behind each prompt
    - numbers: of the samples, where something asks for them
    """

    images: list[list[bytes]]
    texts: Sequence[str | list[str]]
    extra: dict[str, Tensor]
    cut: NotRequired[bool]
    answers: NotRequired[list[list[int]]]
    numbers: NotRequired[Sequence[int]]


class PairedItem(Item):
    """A batch and, where the graph rewires, the one that values are taken from."""

    source: Item | None


class Together(TypedDict):
    """Graphs that share a forward, each on a copy of the batch.

    - graphs: their places among all that were given
    - plans: of all of them; an act says of which copy it is, and so does its key
    - once: paths of modules that all copies pass together, since no graph changes anything there
    """

    graphs: list[int]
    plans: list[SitePlan]
    once: list[str]


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
"""Results with steps joined, layers stacked; what a function folds is by layer, what our folds fold by these layers."""

Sources: TypeAlias = Mapping[tuple[str, Layer], Tensor]
"""What rewired sites held on the source batch, by site and layer."""


class Waiting(TypedDict):
    """An intervention that waits for what comes later in the forward. value: that it acts on. given: what has come."""

    act: Act
    plan: SitePlan
    layer: Layer
    step: int
    value: Tensor
    given: dict[str, Tensor]


class Followed(TypedDict):
    """A tensor that the model went on with, its version then, and the steps to what the site shows of it."""

    tensor: Tensor
    version: int
    view: tuple[Step, ...]
    how: Seeing


Gradients: TypeAlias = dict[tuple[Key, str, Layer], Tensor]
"""In the sites' own axes, by target, site and layer."""


class Beside(TypedDict):
    """What is on its way from site to site in one forward.

    - wanted: by site, the layers whose values are given elsewhere
    - values: of each such site the last layer that came by: its index, the step (None for what is reached once), value
    - followed: by target, the tensors that gradients are taken of
    - totals, targets: numbers that gradients are taken of, and how many are still to come
    """

    wanted: Mapping[str, set[Layer]]
    values: dict[str, tuple[Layer, int | None, Tensor]]
    waiting: list[Waiting]
    followed: dict[Key, dict[tuple[str, Layer], Followed]]
    totals: dict[Key, Tensor]
    targets: int
    gradients: Gradients


Parted: TypeAlias = tuple[Results, Int[Tensor, "row token"] | None, Shaped[Tensor, "row token vocabulary"] | None]
"""What one graph of several comes to in one batch: results, answers and logits."""


class Context(TypedDict):
    """What workers know of the batch under way. columns: under teacher forcing, the step of each column."""

    fields: Mapping[str, Mapping[str, Tensor]]
    rows: int
    beams: int
    sources: Sources
    beside: Beside
    columns: list[int] | None
    prompt_length: int
    sharing: Sharing
    tower: Belonging


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


Index: TypeAlias = tuple[slice | list[int], ...]
"""The part of a value that some rows are, axis by axis."""

Chosen: TypeAlias = tuple[slice, list[int]] | Bool[Tensor, "row token"]
"""An index of the positions to act on: the same columns in every row, or a mask."""
