"""Run: a graph over many batches, folded as it goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interventions import Graph, keep
from mmneuron_lens.batch import Batch
from mmneuron_lens.result import Result
from mmneuron_lens.runtime import local
from mmneuron_lens.runtime.compile import Plan, compile_graph, results_over
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.wire import encode, fold, layout

if TYPE_CHECKING:
    from mmneuron_lens.lens import Lens


def run(
    lens: Lens,
    graph: Graph,
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None,
    settings: dict[str, Any],
    logits: bool,
) -> Result:
    """A forward per batch, or a generation when there are generation settings. Memory does not grow with batches
    except for what `over="list"` reads and `logits` keep.
    """
    plans = compile_graph(graph, lens.anatomy, typed=True, attention=lens.attention)
    overs = results_over(graph, lens.anatomy)
    needs_source = any(act["mode"] == "rewires" for plan in plans for act in plan["acts"])
    if needs_source and sources is None:
        raise TypeError("This graph rewires: give the paired batches, lens.run(graph, batches, sources=[...]).")
    checked: set[tuple[Any, ...]] = set()
    total: dict[tuple[str, str], Any] = {}
    text: list[str] = []
    tokens: list[Tensor] = []
    kept_logits: list[Tensor] = []
    paired = zip(batches, sources, strict=True) if sources is not None else ((batch, None) for batch in batches)
    for batch, source in paired:
        batch = batch.to(lens.device)
        signature = _signature(batch)
        if signature not in checked:
            check_plans(plans, batch, lens.anatomy, lens.module, lens.dtype)
            checked.add(signature)
        held = _held(lens, plans, source.to(lens.device)) if needs_source and source is not None else {}
        if settings:
            results, answers, answer_logits = _generate(lens, plans, batch, held, settings, logits)
            text += lens.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
            tokens += [answer[answer != _pad(lens)].cpu() for answer in answers]
            kept_logits += answer_logits
        else:
            results, output = local.forward(lens.nnsight, plans, batch, held, None)
            if logits:
                kept_logits.append(output.logits.detach())
        total = fold.merge(total, fold.stack(results, overs), overs)
    return Result(fold.finish(total, overs), [answer.strip() for answer in text], tokens, kept_logits)


def _generate(
    lens: Lens, plans: list[Plan], batch: Batch, sources: dict, settings: dict[str, Any], logits: bool
) -> tuple[local.Results, Tensor, list[Tensor]]:
    """Generate; then read what is asked of generated tokens in one teacher-forced forward over prompt and answer."""
    live = _some_acts(plans, lambda act: not _deferred(act))
    results, ids = local.generate(lens.nnsight, live, batch, sources, settings)
    # Some versions return the prompt before the answer, others not.
    answers = ids[:, batch.prompt_length :] if ids.shape[1] >= batch.prompt_length else ids
    if not logits and not any(_deferred(act) for plan in plans for act in plan["acts"]):
        return results, answers, []
    after = _some_acts(plans, lambda act: act["mode"] != "reads" or _deferred(act))
    longer, columns = _with_answers(lens, batch, answers)
    forced, output = local.forward(lens.nnsight, after, longer, sources, columns)
    return {**results, **forced}, answers, [output.logits[:, batch.prompt_length - 1 : -1].detach()] if logits else []


def _with_answers(lens: Lens, batch: Batch, answers: Tensor) -> tuple[Batch, list[int]]:
    """The batch with its answers behind the prompt, and the generation step that each column belongs to."""
    ended = answers == lens.processor.tokenizer.eos_token_id
    visible = answers.masked_fill(ended, _pad(lens))
    inputs = encode.extend(batch.inputs, visible, _pad(lens))
    fields = {**batch.fields, "llm": layout.lay_out(inputs, batch.facts, batch.prompt_length)["llm"]}
    columns = [0] * batch.prompt_length + [step + 1 for step in range(answers.shape[1])]
    return replace(batch, inputs=inputs, fields=fields), columns


def _held(lens: Lens, plans: list[Plan], source: Batch) -> dict[tuple[str, int | None], Tensor]:
    """The values that the rewired sites have on the source batch."""
    reading = []
    for plan in plans:
        acts = [act for act in plan["acts"] if act["mode"] == "rewires"]
        if acts:
            read = {
                **acts[0],
                "mode": "reads",
                "key": (keep.name, plan["site"]),
                "function": keep.function,
                "constants": {},
                "per_layer": {},
                "fields": {},
                "modules": {},
                "layers": None,
                "positions": None,
                "steps": "prompt",
            }
            reading.append({**plan, "acts": [read]})
    results, _ = local.forward(lens.nnsight, reading, source, {}, None)
    return {(site, layer): values[0] for (_, site), layers in results.items() for layer, values in layers.items()}


def _deferred(act: dict[str, Any]) -> bool:
    """A read of generated tokens that does not ask for every beam."""
    return act["mode"] == "reads" and not act["all_beams"] and act["steps"] not in ("prompt", (0,))


def _some_acts(plans: list[Plan], keep_act) -> list[Plan]:
    chosen = [{**plan, "acts": [act for act in plan["acts"] if keep_act(act)]} for plan in plans]
    return [plan for plan in chosen if plan["acts"]]


def _signature(batch: Batch) -> tuple[Any, ...]:
    """What decides whether a graph fits a batch: the fields, and which positions must not count."""
    weighted = tuple(bool((some["weight"] != 1).any()) for some in batch.fields.values())
    return tuple((group, tuple(some)) for group, some in batch.fields.items()), weighted


def _pad(lens: Lens) -> int:
    tokenizer = lens.processor.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
