"""Pack: questions that share their images, behind one common prefix, in one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from PIL import Image
from torch import Tensor

from mmneuron_lens.wire.encode import encode
from mmneuron_lens.wire.layout import group, image_lengths, lay_out, tiles_per_image
from mmneuron_lens.wire.types import Column, Facts, Fields, Inputs, PackedRow, Processor, Sharing

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
        # Nothing to share: without a mask of its own, attention is plainly causal.
        inputs = encode(processor, images, [row[0] for row in texts])
        return inputs, lay_out(inputs, facts), {}
    pictures = [picture for row in images for picture in row]
    seen = processor.image_processor(pictures, return_tensors="pt")
    inputs = {name: value for name, value in seen.items() if isinstance(value, torch.Tensor)}
    lengths = iter(image_lengths(inputs, facts))
    spans = [[next(lengths) for _ in row] for row in images]
    prompts = [tokens_of(processor, row, some) for row, some in zip(texts, spans, strict=True)]
    lengths_of = [max(map(len, row)) for row in prompts]
    if positions is not None and max(lengths_of) > positions:
        place = f"rows[{lengths_of.index(max(lengths_of))}]: " if len(prompts) > 1 else ""
        raise ValueError(place + too_long(max(lengths_of), positions, "the model"))
    refuse_apart(facts, max(len(prompt) for row in prompts for prompt in row))
    rows = [pack_row(row, shared) for row, shared in zip(prompts, prefixes(prompts, facts["image_token"]), strict=True)]
    start = max(row["shared"] for row in rows)
    width = start + max(len(row["ids"]) - row["shared"] for row in rows)
    pad = processor.tokenizer.pad_token_id
    inputs["input_ids"] = aligned(rows, "ids", start, width, pad if pad is not None else 0)
    inputs["position_ids"] = aligned(rows, "positions", start, width, 0)
    question = aligned(rows, "question", start, width, -1)
    inputs["attention_mask"] = block_causal(question, additive)
    weight = aligned(rows, "weight", start, width, 0)
    image = inputs["input_ids"] == facts["image_token"]
    fields = fields_of(inputs, facts, weight, image, [len(row) for row in texts], [len(row) for row in images])
    cut = cut and start >= LONG and limit_of(facts) is None
    return inputs, fields, {"cuts": cuts_of(question, start)} if cut else {}


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


def tokens_of(processor: Processor, texts: Sequence[str], lengths: list[int]) -> list[list[int]]:
    """Token ids of each text, its placeholders repeated for the positions its pictures take."""
    token = processor.image_token
    expanded = []
    for text in texts:
        parts = text.split(token)
        pieces = [part + token * length for part, length in zip(parts, lengths, strict=False)]
        expanded.append("".join([*pieces, parts[-1]]))
    return processor.tokenizer(expanded).input_ids


def prefixes(prompts: list[list[list[int]]], image_token: int) -> list[int]:
    """How many tokens the texts of each row share; as many behind the last picture in every row, so that rows with
    pictures of one size need no padding."""
    shared = [min(common(row), min(len(prompt) for prompt in row) - 1) for row in prompts]
    ends = [
        max((place for place, token in enumerate(row[0]) if token == image_token), default=-1) + 1 for row in prompts
    ]
    behind = min((count - end for count, end in zip(shared, ends, strict=True) if count >= end), default=0)
    return [end + behind if count >= end else count for count, end in zip(shared, ends, strict=True)]


def pack_row(prompts: list[list[int]], shared: int) -> PackedRow:
    """Token ids, restarted positions, weights, and the question each position belongs to (0: the prefix)."""
    ids, positions = list(prompts[0][:shared]), list(range(shared))
    weight, question = [len(prompts)] * shared, [0] * shared
    for number, prompt in enumerate(prompts, 1):
        rest = prompt[shared:]
        ids += rest
        positions += range(shared, len(prompt))
        weight += [1] * len(rest)
        question += [number] * len(rest)
    return {"ids": ids, "positions": positions, "weight": weight, "question": question, "shared": shared}


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
    question: Int[Tensor, "row column"], additive: torch.dtype | None
) -> Shaped[Tensor, "row 1 query key"]:
    """`[row, 1, query, key]`: a position sees the prefix and its own question up to itself; padding sees itself."""
    width = question.shape[1]
    mine, theirs = question[:, :, None], question[:, None, :]
    seen = torch.ones(width, width, dtype=torch.bool).tril() & ((theirs == 0) | (theirs == mine)) & (theirs >= 0)
    seen = (seen | torch.eye(width, dtype=torch.bool))[:, None]
    if additive is None:
        return seen
    return torch.zeros(seen.shape, dtype=additive).masked_fill(~seen, torch.finfo(additive).min)


def fields_of(
    inputs: Inputs,
    facts: Facts,
    weight: Int[Tensor, "row column"],
    image: Bool[Tensor, "row column"],
    questions: list[int],
    pictures: list[int],
) -> Fields:
    """Weights and kinds; what lies before the language model is computed once and counted once per question."""
    fields = {"llm": group(weight, [image, ~image, torch.zeros_like(image)])}
    tiles = tiles_per_image(inputs, facts)
    times = [count for count, several in zip(questions, pictures, strict=True) for _ in range(several)]
    rows = torch.tensor([count for count, number in zip(times, tiles, strict=True) for _ in range(number)])
    vision = rows[:, None].expand(-1, facts["patches"] + 1).contiguous()
    cls = torch.zeros(vision.shape, dtype=torch.bool)
    cls[:, 0] = True
    fields["vision"] = group(vision, [cls, ~cls])
    fields["projector"] = group(vision[:, 1:].contiguous(), [~cls[:, 1:]])
    return fields
