"""Local: a compiled graph run on this machine through nnsight."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from mmneuron_lens.batch import Batch
from mmneuron_lens.runtime.compile import Plan
from mmneuron_lens.wire import execute

Results = dict[tuple[str, str], dict[int | None, list[Any]]]


def forward(
    model: Any, plans: list[Plan], batch: Batch, sources: dict, columns: list[int] | None
) -> tuple[Results, Any]:
    """One forward pass: a data-carrying invoke, then a worker per site. Returns what the reads kept, and the output.

    columns: for teacher forcing, which generation step each column belongs to.
    """
    context = _context(batch, 1, sources, columns)
    results: Results = {}
    inputs = dict(batch.inputs)
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(**inputs):
            output = tracer.result.save()
        for plan in plans:
            with tracer.invoke():
                execute.serve(plan, model, context, 0, results)
    return results, output


def generate(
    model: Any, plans: list[Plan], batch: Batch, sources: dict, settings: dict[str, Any]
) -> tuple[Results, Any]:
    """A generation: workers of the language model visit every step, the others the prompt."""
    beams = settings.get("num_beams") or 1
    context = _context(batch, beams, sources, None)
    results: Results = {}
    inputs = generation_inputs(batch)
    last = steps_at_most(settings, batch)
    with torch.no_grad(), warnings.catch_warnings():
        # Answers end before the last allowed step; nnsight tells each worker that asked for it.
        warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step the run did not make")
        with model.generate(**settings) as tracer:
            with tracer.invoke(**inputs):
                output = tracer.result.save()
            for plan in plans:
                with tracer.invoke():
                    if plan["stepped"] and any(act["steps"] not in ("prompt", (0,)) for act in plan["acts"]):
                        for step in tracer.iter[:last]:
                            execute.serve(plan, model, context, step, results)
                    else:
                        execute.serve(plan, model, context, 0, results)
    return results, output


def generation_inputs(batch: Batch) -> dict[str, Tensor]:
    """The inputs of a batch without positions, which a generation counts by itself."""
    return {name: value for name, value in batch.inputs.items() if name != "position_ids"}


def steps_at_most(settings: dict[str, Any], batch: Batch) -> int:
    """An upper bound of the forward passes that a generation makes."""
    if settings.get("max_new_tokens"):
        return int(settings["max_new_tokens"])
    return max(int(settings.get("max_length") or 20) - batch.prompt_length, 1)


def _context(
    batch: Batch, beams: int, sources: dict[tuple[str, int | None], Tensor], columns: list[int] | None
) -> dict:
    return {
        "fields": batch.fields,
        "rows": batch.rows,
        "beams": beams,
        "sources": sources,
        "columns": columns,
        "prompt_length": batch.prompt_length,
    }
