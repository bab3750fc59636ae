"""Run: a graph over many batches on this machine, folded as it goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interventions import Graph
from interventions.errors import InvalidType
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.compile import Plan, compile_graph, results_over
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.wire import fold
from mmneuron_lens.wire.trace import run_batch

if TYPE_CHECKING:
    from mmneuron_lens.lens import Lens


def run(
    lens: Lens,
    graph: Graph,
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None,
    generation: dict[str, Any],
    logits: bool,
) -> Result:
    """A forward per batch, or a generation when there are generation settings. Memory does not grow with batches
    except for what `over="list"` reads and `logits` keep.
    """
    plans = compile_graph(graph, lens.architecture, typed=True, attention=lens.attention)
    overs = results_over(graph, lens.architecture)
    rewires = needs_source(plans)
    if rewires and sources is None:
        raise InvalidType("This graph rewires: give the paired batches, lens.run(graph, batches, sources=[...]).")
    job = job_of(lens, generation, logits)
    total: dict[tuple[str, str], Any] = {}
    answers: list[Tensor] = []
    kept: list[Tensor] = []
    paired = zip(batches, sources, strict=True) if sources is not None else ((batch, None) for batch in batches)
    for batch, source in paired:
        batch = batch.to(lens.device)
        signature = (graph, _signature(batch))
        if signature not in lens.proved:
            check_plans(plans, batch, lens.architecture, lens.module, lens.dtype)
            lens.proved.add(signature)
        beside = source.to(lens.device).plain() if rewires and source is not None else None
        results, answered, logits_of = run_batch(lens.nnsight, plans, batch.plain(), beside, job)
        total = fold.merge(total, fold.stack(results, overs), overs)
        answers += [] if answered is None else list(answered.cpu())
        kept += [] if logits_of is None else [logits_of]
    return result_of(lens, fold.finish(total, overs), answers, kept, job["pad"])


def needs_source(plans: list[Plan]) -> bool:
    return any(act["mode"] == "rewires" for plan in plans for act in plan["acts"])


def job_of(lens: Lens, generation: dict[str, Any], logits: bool) -> dict[str, Any]:
    """What `wire.trace.run_batch` needs to know beside the plans."""
    tokenizer = lens.processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "generation": dict(generation),
        "logits": logits,
        "facts": dict(lens.architecture.facts),
        "pad": pad,
        "end": tokenizer.eos_token_id,
        # What a packed batch's mask is made of.
        "additive": lens.dtype if lens.attention == "eager" else None,
    }


def result_of(
    lens: Lens, values: dict[tuple[str, str], Any], answers: list[Tensor], logits: list[Tensor], pad: int
) -> Result:
    """Answers as text and as tokens without padding."""
    text = lens.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return Result(values, [answer.strip() for answer in text], [row[row != pad] for row in answers], logits)


def _signature(batch: Batch) -> tuple[Any, ...]:
    """What decides whether a graph fits a batch: the fields, and which positions must not count."""
    weighted = tuple(bool((some["weight"] != 1).any()) for some in batch.fields.values())
    return tuple((group, tuple(some)) for group, some in batch.fields.items()), weighted
