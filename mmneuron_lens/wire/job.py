"""A job: batches as files and words, encoded, run and folded where the model is."""

from __future__ import annotations

import torch

from mmneuron_lens.wire.answers import append_answers
from mmneuron_lens.wire.encode import completed, encode
from mmneuron_lens.wire.fold import merge, stack
from mmneuron_lens.wire.images import decode
from mmneuron_lens.wire.layout import lay_out
from mmneuron_lens.wire.pack import pack
from mmneuron_lens.wire.rows import belonging
from mmneuron_lens.wire.share import share
from mmneuron_lens.wire.together import run_together
from mmneuron_lens.wire.trace import run_batch
from mmneuron_lens.wire.types import (
    BatchData,
    FoldedJob,
    Item,
    Job,
    Module,
    Overs,
    PairedItem,
    Processor,
    Returned,
    Sharing,
    SitePlan,
    Together,
    Value,
)


def run_job(model: Module, plans: list[SitePlan], items: list[PairedItem], job: FoldedJob) -> Returned:
    """Run every item and fold; only totals, answers and requested logits are returned.

    items: batches as files and words. job: also says how the results are folded.
    """
    total, answers, logits = {}, [], []
    processor = completed(model.processor, job["missing"])
    for item in items:
        batch = prepare(processor, item, job)
        source = None if item["source"] is None else prepare(processor, item["source"], job)
        results, answered, kept = run_batch(model, plans, batch, source, job)
        total = merge(total, stack(results, job["overs"]), job["overs"])
        if answered is not None:
            answers.extend(answered.cpu().unbind(0))
        if kept is not None:
            logits.append(kept.cpu())
    return {"values": to_cpu(total), "answers": answers, "logits": logits}


def run_many(
    model: Module, groups: list[Together], items: list[PairedItem], job: Job, overs: list[Overs]
) -> list[Returned]:
    """As `run_job`, for several graphs, of which each group shares a forward; what each comes to.

    overs: by graph.
    """
    processor = completed(model.processor, job["missing"])
    found: list[Returned] = [{"values": {}, "answers": [], "logits": []} for _ in overs]
    for item in items:
        batch = prepare(processor, item, job)
        source = None if item["source"] is None else prepare(processor, item["source"], job)
        for place, (results, answered, kept) in run_together(model, groups, batch, source, job).items():
            own, over = found[place], overs[place]
            own["values"] = merge(own["values"], stack(results, over), over)
            if answered is not None:
                own["answers"].extend(answered.cpu().unbind(0))
            if kept is not None:
                own["logits"].append(kept.cpu())
    for own in found:
        own["values"] = to_cpu(own["values"])
    return found


def prepare(processor: Processor, item: Item, job: Job) -> BatchData:
    """Decode, encode and lay out, with the processor that lives beside the model."""
    pictures = [[decode(image) for image in some] for some in item["images"]]
    packs = [text for text in item["texts"] if isinstance(text, list)]
    sharing: Sharing = {}
    if packs and not job["facts"].get("vision_tower"):
        # Several prompts of the same images, in one row.
        inputs, fields, sharing = pack(
            processor, pictures, packs, job["facts"], job["additive"], item.get("cut", False)
        )
    elif packs:
        inputs, fields, sharing = share(processor, pictures, packs, job["facts"])
    else:
        inputs = encode(processor, pictures, [text for text in item["texts"] if isinstance(text, str)], job["facts"])
        fields = lay_out(inputs, job["facts"])
    length, answers = inputs["input_ids"].shape[1], item.get("answers")
    if answers:
        inputs, coming = append_answers(inputs, answers, job["pad"], job["facts"])
        fields = lay_out(inputs, job["facts"], length)
        fields["llm"]["answer"] = coming
    fields["llm"] = {**fields["llm"], **item["extra"]}
    return {
        "inputs": inputs,
        "fields": fields,
        "prompt_length": length,
        "sharing": sharing,
        "samples": {
            "numbers": item.get("numbers", range(len(item["images"]))),
            "images": [len(some) for some in item["images"]],
            "prompts": [len(text) if isinstance(text, list) else 1 for text in item["texts"]],
        },
        "tower": belonging(inputs, job["facts"], [len(some) for some in item["images"]], sharing),
    }


def to_cpu(value: Value) -> Value:
    if isinstance(value, dict):
        return {name: to_cpu(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_cpu(part) for part in value)
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
