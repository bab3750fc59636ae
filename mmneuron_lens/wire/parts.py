"""Parts: a packed batch run as its prefix and then its questions, which read the prefix's keys and values.

One pass over the whole would compute attention between all positions; behind a cache, the prefix is plainly causal and
questions meet the prefix and each other alone.
"""

from __future__ import annotations

from mmneuron_lens.wire.forward import forward, lean
from mmneuron_lens.wire.types import BatchData, Job, Module, Results, SitePlan
from mmneuron_lens.wire.views import CACHES


def refuse_whole(plans: list[SitePlan], job: Job) -> None:
    """Raise `ValueError` for what needs all columns in one pass: parts are folded, so no listing read fits."""
    acts = [(plan, act) for plan in plans if plan["stepped"] for act in plan["acts"]]
    for plan, act in acts:
        folding = act["mode"] == "reads" and act["over"] != "list"
        if not folding or not (act["positions"] is None or isinstance(act["positions"], str)):
            raise ValueError(
                f"{act['name']} at {plan['site']} needs a whole row, and this batch runs in parts that are folded; "
                "pack it with lens.pack(rows, cut=False)."
            )
        reached = {other["site"] for other in plans if other["stepped"]}
        if act["gradients"] or any(one["site"] not in reached or one["source"] for one in act["values"].values()):
            raise ValueError(
                f"{act['name']} at {plan['site']} is given what the whole row has, and this batch runs in parts; pack "
                "it with lens.pack(rows, cut=False)."
            )
    if job["logits"]:
        raise ValueError("logits need a whole row, and this batch runs in parts; pack it with cut=False.")


def forward_in_parts(model: Module, plans: list[SitePlan], batch: BatchData, cuts: list[int]) -> Results:
    """The prefix with images and cache, then each part of the questions; results of the parts are listed per layer.

    cuts: columns where the prefix and each part end.
    """
    start, *ends = cuts
    prefix = columns_of(batch, 0, start)
    prefix["inputs"]["attention_mask"] = (batch["fields"]["llm"]["weight"][:, :start] > 0).long()
    results, output = forward(model, plans, prefix, {}, None, {**lean(plans), "use_cache": True})
    called = next(name for name in CACHES if name in output)
    cache = output[called]
    later = [plan for plan in plans if plan["stepped"]]
    seen = batch["inputs"]["attention_mask"]
    for end in ends:
        part = columns_of(batch, start, end)
        part["inputs"] = {name: part["inputs"][name] for name in ("input_ids", "position_ids")}
        own = seen[:, :, start:end]
        part["inputs"]["attention_mask"] = own[..., [*range(cuts[0]), *range(start, end)]]
        # A tensor, so that the inputs are handed to the model as they are, not row by row; a single number, which may
        # be on another device than the last layer.
        last = part["inputs"]["input_ids"].new_tensor(end - start - 1)
        settings = {**lean(later), "use_cache": True, called: cache}
        if "logits_to_keep" in settings:
            settings["logits_to_keep"] = last
        found, _ = forward(model, later, part, {}, None, settings)
        # What only this part's questions may see.
        cache.crop(start - end)
        for key, layers in found.items():
            for layer, values in layers.items():
                results.setdefault(key, {}).setdefault(layer, []).extend(values)
        start = end
    return results


def columns_of(batch: BatchData, start: int, end: int) -> BatchData:
    """A batch of some columns of the language model; what lies before it is untouched."""
    inputs = dict(batch["inputs"])
    for name in ("input_ids", "position_ids"):
        inputs[name] = inputs[name][..., start:end]
    own = {name: field[:, start:end] for name, field in batch["fields"]["llm"].items()}
    fields = {**batch["fields"], "llm": own}
    return {**batch, "inputs": inputs, "fields": fields, "prompt_length": end - start, "sharing": {}}
