"""Forward: one pass of the model, a worker per site, and what a pass can do without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mmneuron_lens.wire.beside import has_targets, nothing_beside, refuse_incomplete
from mmneuron_lens.wire.execute import find, serve
from mmneuron_lens.wire.once import pass_once
from mmneuron_lens.wire.share import spread_images
from mmneuron_lens.wire.types import BatchData, Context, Gradients, Module, Results, SitePlan, Sources


def forward(
    model: Module,
    plans: list[SitePlan],
    batch: BatchData,
    sources: Sources,
    columns: list[int] | None,
    settings: Mapping[str, Any],
    gradients: Gradients | None = None,
) -> tuple[Results, Any]:
    """One forward pass: a data-carrying invoke, then a worker per site. Returns `(results, output)`.

    columns: for teacher forcing, which generation step each column belongs to. settings: of the model's forward.
    gradients: that reads are given, where they were taken before.
    """
    context = make_context(batch, 1, sources, columns, plans)
    context["beside"]["gradients"] = dict(gradients or {})
    results = {}
    inputs = {**batch["inputs"], **settings}
    spread = batch["sharing"].get("spread")
    with torch.set_grad_enabled(has_targets(plans)), model.trace() as tracer:
        with tracer.invoke(**inputs):
            output = tracer.result.save()
        for plan in plans:
            with tracer.invoke():
                serve(plan, model, context, 0, results)
        for path in batch["sharing"].get("once", []):
            # The workers before it see one copy.
            with tracer.invoke():
                pass_once(find(model, path), batch["sharing"].get("copies", 1), batch["tower"]["axis"])
        if spread:
            # Last: the workers before it see each image once.
            with tracer.invoke():
                spread_images(find(model, spread["at"]), spread["rows"])
    refuse_incomplete(context["beside"]["waiting"])
    return results, output


def lean(plans: list[SitePlan]) -> dict[str, Any]:
    """Settings that leave out the cache and, unless a site there is asked for, all logits but the last column's."""
    if any(plan["site"] in ("llm.unembed", "llm.logits") for plan in plans):
        return {}
    return {"use_cache": False, "logits_to_keep": 1}


def make_context(
    batch: BatchData, beams: int, sources: Sources, columns: list[int] | None, plans: list[SitePlan]
) -> Context:
    return {
        "fields": batch["fields"],
        "rows": batch["inputs"]["input_ids"].shape[0],
        "beams": beams,
        "sources": sources,
        "beside": nothing_beside(plans),
        "columns": columns,
        "prompt_length": batch["prompt_length"],
        "sharing": batch["sharing"],
        "tower": batch["tower"],
    }
