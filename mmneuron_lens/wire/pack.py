"""Pack: questions that share their images, behind one common prefix, in one sequence."""

from __future__ import annotations

import torch

from mmneuron_lens.wire.layout import group, image_lengths, tiles_per_image


def pack(processor, images, texts, facts, additive):
    """One row per set of images: the prefix that all its texts share once, then the rest of each text.

    images: per row, its RGB pictures. texts: per row, its prompts, each with one placeholder per picture. Positions
    restart behind the prefix, and a block-causal mask keeps the questions apart, so each computes what it computes
    alone. additive: whether the mask is a float to add (eager attention) or booleans. Returns `(inputs, fields)`:
    prefix positions and vision sites weigh as many times as there are questions.
    """
    pictures = [picture for row in images for picture in row]
    seen = processor.image_processor(pictures, return_tensors="pt")
    inputs = {name: value for name, value in seen.items() if isinstance(value, torch.Tensor)}
    lengths = iter(image_lengths(inputs, facts))
    spans = [[next(lengths) for _ in row] for row in images]
    rows = [pack_row(processor, row, some) for row, some in zip(texts, spans, strict=True)]
    width = max(len(row["ids"]) for row in rows)
    pad = processor.tokenizer.pad_token_id
    inputs["input_ids"] = torch.stack([filled(row["ids"], width, pad if pad is not None else 0) for row in rows])
    inputs["position_ids"] = torch.stack([filled(row["positions"], width, 0) for row in rows])
    question = torch.stack([filled(row["question"], width, -1) for row in rows])
    inputs["attention_mask"] = block_causal(question, additive)
    weight = torch.stack([filled(row["weight"], width, 0) for row in rows])
    image = inputs["input_ids"] == facts["image_token"]
    return inputs, fields_of(inputs, facts, weight, image, [len(row) for row in texts], [len(row) for row in images])


def pack_row(processor, texts, lengths):
    """Token ids, restarted positions, weights, and the question each position belongs to (0: the prefix)."""
    token = processor.image_token
    expanded = []
    for text in texts:
        parts = text.split(token)
        pieces = [part + token * length for part, length in zip(parts, lengths, strict=False)]
        expanded.append("".join([*pieces, parts[-1]]))
    prompts = processor.tokenizer(expanded).input_ids
    # Every question keeps at least one token of its own.
    shared = min(common(prompts), min(len(prompt) for prompt in prompts) - 1)
    ids, positions = list(prompts[0][:shared]), list(range(shared))
    weight, question = [len(prompts)] * shared, [0] * shared
    for number, prompt in enumerate(prompts, 1):
        rest = prompt[shared:]
        ids += rest
        positions += range(shared, len(prompt))
        weight += [1] * len(rest)
        question += [number] * len(rest)
    return {"ids": ids, "positions": positions, "weight": weight, "question": question}


def common(sequences):
    """How many leading elements all sequences share."""
    count = 0
    for elements in zip(*sequences, strict=False):
        if len(set(elements)) > 1:
            break
        count += 1
    return count


def filled(values, width, value):
    return torch.tensor(values + [value] * (width - len(values)))


def block_causal(question, additive):
    """`[row, 1, query, key]`: a position sees the prefix and its own question up to itself; padding sees itself."""
    width = question.shape[1]
    mine, theirs = question[:, :, None], question[:, None, :]
    seen = torch.ones(width, width, dtype=torch.bool).tril() & ((theirs == 0) | (theirs == mine)) & (theirs >= 0)
    seen = (seen | torch.eye(width, dtype=torch.bool))[:, None]
    if additive is None:
        return seen
    return torch.zeros(seen.shape, dtype=additive).masked_fill(~seen, torch.finfo(additive).min)


def fields_of(inputs, facts, weight, image, questions, pictures):
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
