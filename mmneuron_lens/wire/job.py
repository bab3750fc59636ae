"""A job: batches as files and words, encoded, run and folded where the model is."""

from __future__ import annotations

import torch

from mmneuron_lens.wire.encode import encode
from mmneuron_lens.wire.fold import merge, stack
from mmneuron_lens.wire.images import decode
from mmneuron_lens.wire.layout import lay_out
from mmneuron_lens.wire.pack import pack
from mmneuron_lens.wire.share import share
from mmneuron_lens.wire.trace import run_batch


def run_job(model, plans, items, job):
    """Run every item and fold; only totals, answers and requested logits are returned.

    items: dicts of `images` (a list of files' bytes per text), `texts` (per row a prompt, or the list of prompts packed
    in it), `extra` (own fields) and `source` (an item of
    the same form, or None).
    """
    total, answers, logits = {}, [], []
    for item in items:
        batch = prepare(model.processor, item, job)
        source = None if item["source"] is None else prepare(model.processor, item["source"], job)
        results, answered, kept = run_batch(model, plans, batch, source, job)
        total = merge(total, stack(results, job["overs"]), job["overs"])
        if answered is not None:
            answers.extend(answered.cpu().unbind(0))
        if kept is not None:
            logits.append(kept.cpu())
    return {"values": to_cpu(total), "answers": answers, "logits": logits}


def prepare(processor, item, job):
    """Decode, encode and lay out, with the processor that lives beside the model."""
    pictures = [[decode(image) for image in some] for some in item["images"]]
    sharing = {}
    if isinstance(item["texts"][0], list) and job["facts"]["images_in_text"]:
        # Several prompts of the same images, in one row.
        inputs, fields, sharing = pack(
            processor, pictures, item["texts"], job["facts"], job["additive"], item.get("cut", False)
        )
    elif isinstance(item["texts"][0], list):
        inputs, fields, sharing = share(processor, pictures, item["texts"], job["facts"])
    else:
        inputs = encode(processor, pictures, item["texts"])
        fields = lay_out(inputs, job["facts"])
    fields["llm"] = {**fields["llm"], **item["extra"]}
    return {"inputs": inputs, "fields": fields, "prompt_length": inputs["input_ids"].shape[1], "sharing": sharing}


def to_cpu(value):
    if isinstance(value, dict):
        return {name: to_cpu(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_cpu(part) for part in value)
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
