"""Pack: questions that share their images, behind one common prefix, in one sequence."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from mmneuron_lens.wire.encode import encode, pictures_of
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.layout import before_the_llm, group, lay_out
from mmneuron_lens.wire.positions import lengths
from mmneuron_lens.wire.positions import positions as positions_of
from mmneuron_lens.wire.types import Column, Fields, Inputs, PackedRow, Processor, Sharing

LONG = 512
"""Positions of a prefix from which on a second pass costs less than attention between all positions."""

PART = 512
"""Positions of questions in one part, about."""


def pack(
    processor: Processor,
    images: list[list[Image.Image]],
    texts: Sequence[Sequence[str]],
    facts: Facts,
    additive: torch.dtype | None,
    cut: bool,
    positions: int | None = None,
) -> tuple[Inputs, Fields, Sharing]:
    """One row per set of images: the prefix that all its texts share once, then the rest of each text.

    images: per row, its RGB pictures. texts: per row, its prompts, each with one placeholder per picture. Prefixes end,
    and questions start, at the same column of all rows. Positions restart behind the prefix, and a block-causal mask
    keeps the questions apart, so each computes what it computes alone. additive: whether the mask is a float to add
    (eager attention) or booleans. cut: run long prefixes and their questions apart (`wire.parts`), unless a layer has a
    window, whose cache forgets the prefix. positions: that the model has. Returns `(inputs, fields, sharing)`: prefix
    positions and vision sites weigh as many times as there are questions. Raises `ValueError` for a longer prompt
    before its mask is made, and for what does not compute alone what it computes here.
    """
    if all(len(row) == 1 for row in texts):
        # Nothing to share: without a mask of its own, attention is what the model makes of it.
        inputs = encode(processor, images, [row[0] for row in texts], facts)
        return inputs, lay_out(inputs, facts), {}
    asked = [ask_together(processor, some, row, facts) for some, row in zip(images, texts, strict=True)]
    prompts = [[one["input_ids"] for one in row] for row, _ in asked]
    placed = [places_of(row, pixels, facts) for row, (_, pixels) in zip(prompts, asked, strict=True)]
    longest = [int(max(lengths(one).max() for one in places)) for places in placed]
    if positions is not None and max(longest) > positions:
        place = f"rows[{longest.index(max(longest))}]: " if len(prompts) > 1 else ""
        raise ValueError(place + too_long(max(longest), positions, "the model"))
    refuse_apart(facts, max(len(prompt) for row in prompts for prompt in row))
    starts = prefixes(prompts, facts["image_token"])
    rows = [pack_row(*row) for row in zip(prompts, placed, starts, strict=True)]
    start = max(row["shared"] for row in rows)
    width = start + max(len(row["ids"]) - row["shared"] for row in rows)
    padding = processor.tokenizer.pad_token_id
    inputs = stacked([pixels for _, pixels in asked])
    inputs["input_ids"] = aligned(rows, "ids", start, width, padding if padding is not None else 0)
    inputs["position_ids"] = aligned_positions(rows, start, width)
    question = aligned(rows, "question", start, width, -1)
    weight = aligned(rows, "weight", start, width, 0)
    image = inputs["input_ids"] == facts["image_token"]
    inputs["attention_mask"] = block_causal(question, additive, image if facts["sees_ahead"] == "image" else None)
    times = [len(row) for row in texts]
    fields = {"llm": group(weight, [image, ~image, torch.zeros_like(image)])}
    fields |= before_the_llm(inputs, facts, image.sum(1).tolist(), times, [len(row) for row in images])
    cut = cut and start >= LONG and limit_of(facts) is None and not facts["sees_ahead"]
    return inputs, fields, {"cuts": cuts_of(question, start)} if cut else {}


def ask_together(
    processor: Processor, images: list[Image.Image], texts: Sequence[str], facts: Facts
) -> tuple[list[dict[str, list[int]]], Inputs]:
    """What the processor makes of each text, by name, and of the images, which are prepared once.

    The processor itself says what stands for an image in a text: it is asked again with what it made of the images.
    """
    once = copy.copy(processor)
    once.image_processor = copy.copy(processor.image_processor)
    prepare = processor.image_processor.preprocess
    made = {}

    def prepared(*given, **settings):
        made["first"] = prepare(*given, **settings)
        return copy.copy(made["first"])

    once.image_processor.preprocess = prepared
    inputs = encode(once, [images], texts[:1], facts)
    names = ["input_ids", "attention_mask", *(name for name in facts["token_ids"] if name in inputs)]
    pixels = {name: value for name, value in inputs.items() if name not in (*names, "position_ids")}
    rest, first = len(texts) - 1, made["first"]

    def repeated(*given, **settings):
        # Pixels by reference: a text needs their sizes alone.
        return type(first)(
            {
                name: list(value) * rest if name.startswith("pixel") else times(value, rest)
                for name, value in first.items()
            }
        )

    rows = [{name: inputs[name][0].tolist() for name in names}]
    if rest:
        once.image_processor.preprocess = repeated
        pictures = pictures_of([images] * rest, facts)
        found = once(text=list(texts[1:]), padding=True, return_tensors=None, **pictures)
        for row in range(rest):
            real = found["attention_mask"][row]
            own = {name: found[name][row] for name in names}
            rows.append({name: [one for one, here in zip(own[name], real, strict=True) if here] for name in names})
    return rows, pixels


def places_of(
    prompts: Sequence[Sequence[int]], pixels: Mapping[str, Tensor], facts: Facts
) -> list[Int[Tensor, "*axis row token"]]:
    """The positions of each prompt alone."""
    if facts["positions"] == "row":
        return [torch.arange(facts["first"], facts["first"] + len(ids))[None] for ids in prompts]
    places = []
    for ids in prompts:
        own = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        places.append(positions_of({**pixels, **own}, facts))
    return places


def times(value: Any, count: int) -> Any:
    """A list or tensor so many times, one after another."""
    if isinstance(value, torch.Tensor):
        return value.repeat(count, *[1] * (value.ndim - 1))
    return list(value) * count


def stacked(parts: Sequence[Inputs]) -> Inputs:
    """What the model sees of the images of several rows, as one batch: zeros where tiles or pixels are fewer."""
    whole = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        sizes = [max(value.shape[axis] for value in values) for axis in range(values[0].ndim)]
        padded = []
        for value in values:
            missing = [(0, size - own) for size, own in zip(sizes[1:], value.shape[1:], strict=True)]
            padded.append(pad(value, [side for both in reversed(missing) for side in both]))
        whole[name] = torch.cat(padded)
    return whole


def refuse_apart(facts: Facts, longest: int) -> None:
    """Raise `ValueError` where a row of several prompts, of at most so many positions, is not exact.

    The mask of a packed row says what each position sees, so no window may be shorter than a prompt; and its positions
    restart, so that a position embedding which depends on the sequence's length must not do so yet.
    """
    why = why_apart(facts, longest)
    if why:
        raise ValueError(f"Prompts cannot share a row: {why}; encode them, lens.encode(images, texts).")


def why_apart(facts: Facts, longest: int) -> str:
    """Why prompts of at most so many positions do not share a row exactly; empty where they do."""
    if "sharable" not in facts:
        return "this architecture's facts do not say whether its attention is plainly causal"
    limit = limit_of(facts)
    if limit is not None and longest > limit:
        what = "layers see" if limit == facts["sharable"]["window"] else "the original context has"
        return f"{what} {limit} positions, and the longest prompt has {longest}"
    return facts["sharable"]["apart"]


def limit_of(facts: Facts) -> int | None:
    """Positions of the longest prompt that may share a row; None where any may."""
    limits = [facts["sharable"][name] for name in ("window", "rescaled")] if "sharable" in facts else []
    return min((limit for limit in limits if limit is not None), default=None)


def too_long(length: int, positions: int, what: str, new_tokens: int = 0) -> str:
    """Says that a prompt, with its answer, does not fit into the positions of a model."""
    answer = f" and its answer up to {new_tokens}" if new_tokens else ""
    return f"the prompt takes {length} positions{answer}, and {what} has {positions}; shorten it, or show less."


def prefixes(prompts: list[list[list[int]]], image_token: int) -> list[int]:
    """How many tokens the texts of each row share; as many behind the last picture in every row, so that rows with
    pictures of one size need no padding."""
    shared = [min(common(row), min(len(prompt) for prompt in row) - 1) for row in prompts]
    ends = [
        max((place for place, token in enumerate(row[0]) if token == image_token), default=-1) + 1 for row in prompts
    ]
    behind = min((count - end for count, end in zip(shared, ends, strict=True) if count >= end), default=0)
    return [end + behind if count >= end else count for count, end in zip(shared, ends, strict=True)]


def pack_row(prompts: list[list[int]], places: Sequence[Int[Tensor, "*axis row token"]], shared: int) -> PackedRow:
    """Token ids, restarted positions, weights, and the question each position belongs to (0: the prefix).

    - places: the positions of each prompt, `[1, tokens]` or `[axes, 1, tokens]`.
    """
    ids, positions = list(prompts[0][:shared]), [places[0][..., :shared]]
    weight, question = [len(prompts)] * shared, [0] * shared
    for number, (prompt, own) in enumerate(zip(prompts, places, strict=True), 1):
        rest = prompt[shared:]
        ids += rest
        positions.append(own[..., shared:])
        weight += [1] * len(rest)
        question += [number] * len(rest)
    whole = torch.cat(positions, dim=-1)
    return {"ids": ids, "positions": whole, "weight": weight, "question": question, "shared": shared}


def aligned_positions(rows: Sequence[PackedRow], start: int, width: int) -> Int[Tensor, "*axis row column"]:
    """As `aligned`, of positions; zeros where a row has none."""
    padded = []
    for row in rows:
        before, own = start - row["shared"], row["positions"]
        padded.append(pad(own, [before, width - before - own.shape[-1]]))
    return torch.cat(padded, dim=-2)


def cuts_of(question: Int[Tensor, "row column"], start: int) -> list[int]:
    """Columns where a forward is cut: behind the prefix, and behind about every `PART` columns of a lone row."""
    width = question.shape[1]
    if question.shape[0] > 1:
        # Questions of several rows end at different columns.
        return [start, width]
    cuts, numbers = [start], question[0].tolist()
    for column in range(start + 1, width):
        if numbers[column] != numbers[column - 1]:
            last = column
            following = numbers.count(numbers[column])
            if last + following - cuts[-1] > PART:
                cuts.append(last)
    return [*cuts, width]


def common(sequences: Iterable[Sequence[Any]]) -> int:
    """How many leading elements all sequences share."""
    count = 0
    for elements in zip(*sequences, strict=False):
        if len(set(elements)) > 1:
            break
        count += 1
    return count


def aligned(rows: list[PackedRow], name: Column, start: int, width: int, value: int) -> Int[Tensor, "row column"]:
    """Prefixes padded on the left up to column `start`, questions on the right up to `width`."""
    padded = [
        [value] * (start - row["shared"]) + row[name] + [value] * (width - start - len(row[name]) + row["shared"])
        for row in rows
    ]
    return torch.tensor(padded)


def block_causal(
    question: Int[Tensor, "row column"],
    additive: torch.dtype | None,
    image: Bool[Tensor, "row column"] | None = None,
) -> Shaped[Tensor, "row 1 query key"]:
    """`[row, 1, query, key]`: a position sees the prefix and its own question up to itself; padding sees itself.

    - image: image positions, where those of one image see each other.
    """
    width = question.shape[1]
    mine, theirs = question[:, :, None], question[:, None, :]
    before = torch.ones(width, width, dtype=torch.bool).tril()
    if image is not None:
        starts = image & ~pad(image, (1, 0))[:, :-1]
        number = starts.cumsum(1) * image
        before = before | ((number[:, :, None] == number[:, None, :]) & image[:, :, None])
    seen = before & ((theirs == 0) | (theirs == mine)) & (theirs >= 0)
    seen = (seen | torch.eye(width, dtype=torch.bool))[:, None]
    if additive is None:
        return seen
    return torch.zeros(seen.shape, dtype=additive).masked_fill(~seen, torch.finfo(additive).min)
