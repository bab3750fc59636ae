"""Knock-out by kinds of positions: which attention carries what the image says to the answer, and in which layers.

Attention of some positions to others is forbidden in a window of layers (arXiv 2411.18620): image to question
(`queries="question", keys="image"`), image to last, question to last, with windows of about 9 of 32 layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import polars as pl
import torch
from jaxtyping import Bool
from torch import Tensor

from interventions import Graph, Intervention, knock_out_attention
from interventions.attention import layers_around
from interventions.errors import InvalidValue, UnknownName
from interventions.sites import GROUP_KINDS, unknown
from mmneuron_lens.experiments.whole_rows import refuse_packed_rows
from mmneuron_lens.lens import Lens
from mmneuron_lens.metrics.intervals import mean_interval
from mmneuron_lens.runtime.batch import Batch

Part = Literal["image", "text", "question", "last", "all"]
PARTS: tuple[Part, ...] = get_args(Part)


def knocked_out(
    lens: Lens,
    batch: Batch,
    *,
    queries: Part,
    keys: Part,
    around: int | None = None,
    window: int = 9,
    layers: int | Iterable[int] | None = None,
    generated: bool = False,
) -> Intervention:
    """`knock_out_attention` for this batch: the queries no longer attend to the keys, in all heads.

    - queries, keys: parts of every prompt, see `part_of`
    - around, window: in so many layers around this one, clipped at the ends of the stack; its name says which
    - layers: in these layers instead; in all of them if neither is given
    - generated: whether generated tokens are cut off from the keys too

    The name of what comes back says what is cut and in which layers, and whether the window is clipped.

    Raises `UnknownName` for another part, `InvalidValue` for one that some row does not have, for `around` together
    with `layers`, or a packed batch, `OutOfRange` for a layer.
    """
    if around is not None and layers is not None:
        raise InvalidValue("around and layers both say where; give one of them.")
    cut = knock_out_attention.bind(queries=part_of(batch, queries), keys=part_of(batch, keys), generated=generated)
    name = f"{keys} to {queries} cut"
    if around is None:
        cut = cut.named(name)
        return cut if layers is None else cut.at(layers=layers)
    place = lens.architecture.place("llm.attention.mask")
    found = layers_around(around, window, place.layers or 0)
    clipped = "" if len(found) == window else f", a window of {window} clipped"
    return cut.named(f"{name} in layers {found[0]} to {found[-1]}{clipped}").at(layers=found)


def knock_out_curve(
    lens: Lens, batch: Batch, answers: Sequence[int], *, queries: Part, keys: Part, window: int = 9
) -> pl.DataFrame:
    """How much the answer's probability changes with the attention cut in a window around each layer.

    - batch: of `lens.encode`
    - answers: per row the id of the answer's first token; rows that the model answers otherwise are left out
    - queries, keys, window: as in `knocked_out`

    Returns a row per layer: layer, first, last (of the layers that are cut), change, low, high, questions. The change
    is the mean of 100 (p_cut - p) / p over questions (arXiv 2411.18620), with its 95 % bootstrap interval.

    Raises as `knocked_out` does, and `InvalidValue` for another number of answers than rows, or none that is right.
    """
    if len(answers) != batch.rows:
        raise InvalidValue(f"The batch has {batch.rows} rows, and there are {len(answers)} answers; give one a row.")
    tokens = torch.tensor(list(answers), device="cpu")[:, None]
    plain, best = _probability(lens, Graph(), batch, tokens)
    right = best == tokens[:, 0]
    if not bool(right.any()):
        raise InvalidValue("The model answers none of these rows right, so there is no probability to lose.")
    rows: list[dict[str, Any]] = []
    for layer in range(lens.architecture.place("llm.attention.mask").layers or 0):
        cut = knocked_out(lens, batch, queries=queries, keys=keys, around=layer, window=window)
        left = _probability(lens, Graph((cut,)), batch, tokens)[0]
        change = (100 * (left - plain) / plain)[right].numpy()
        low, high = mean_interval(change)
        assert cut.layers is not None
        row = {"layer": layer, "first": cut.layers[0], "last": cut.layers[-1], "change": float(change.mean())}
        rows.append(row | {"low": low, "high": high, "questions": len(change)})
    return pl.DataFrame(rows)


def _probability(lens: Lens, graph: Graph, batch: Batch, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row's token at the prompt's end, float64 [row], and the most likely one."""
    logits = lens.run(graph, batch, logits=True).logits[0][:, batch.prompt_length - 1]
    return logits.double().softmax(-1).gather(1, tokens)[:, 0], logits.argmax(-1)


def part_of(batch: Batch, part: Part) -> Bool[Tensor, "row prompt"]:
    """Which positions of a batch's prompts are one part, bool `[row, prompt]`.

    - part: "image"; "text", all else; "question", the text behind the last image position without the last position;
      "last", the last position of the prompt; "all"

    Raises `UnknownName` for another part, `InvalidValue` for one that some row does not have, or a packed batch.
    """
    if part not in PARTS:
        raise UnknownName(unknown("part", part, list(PARTS)))
    refuse_packed_rows(batch)
    fields = batch.fields["llm"]
    real, names = fields["weight"] > 0, GROUP_KINDS["llm"]
    image, text = (real & fields["kind"][..., names.index(name)] for name in ("image", "text"))
    last = torch.zeros_like(real)
    last[:, batch.prompt_length - 1] = True
    # Behind the last image position: none is left from here on.
    behind = image.flip(1).cumsum(1).flip(1) == 0
    found = {"image": image, "text": text, "question": text & behind & ~last, "last": last, "all": image | text}[part]
    if lacking := (~found.any(1)).nonzero().flatten().tolist():
        raise InvalidValue(f"Row {lacking[0]} of this batch has no {part} positions, so nothing would be cut there.")
    return found
