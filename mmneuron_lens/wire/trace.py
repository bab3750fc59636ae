"""Trace: one batch through the model, a worker per site, and what the reads kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmneuron_lens.wire.beside import refuse_incomplete, wanted_layers
from mmneuron_lens.wire.between import START, act_of, forward_between
from mmneuron_lens.wire.encode import extend
from mmneuron_lens.wire.execute import find, serve
from mmneuron_lens.wire.forward import forward, lean, make_context
from mmneuron_lens.wire.layout import lay_out
from mmneuron_lens.wire.numbering import asks_for_samples, numbered, with_answers_numbered
from mmneuron_lens.wire.once import longest_answers, pass_once
from mmneuron_lens.wire.parts import forward_in_parts, refuse_whole
from mmneuron_lens.wire.types import Act, BatchData, Job, Module, Results, Sharing, SitePlan, Sources


def run_batch(
    model: Module, plans: list[SitePlan], batch: BatchData, source: BatchData | None, job: Job
) -> tuple[Results, Int[Tensor, "row token"] | None, Float[Tensor, "row token vocabulary"] | None]:
    """A forward, or a generation when `job["generation"]` has settings; a batch with cuts runs part by part.

    Returns `(results, answers, logits)`: results by key and layer, answers int64 `[rows, tokens]` or None, logits or
    None.
    """
    batch = numbered(batch, job["facts"]) if asks_for_samples(plans) else batch
    held = {} if source is None else hold(model, plans, source, bool(job.get("between")))
    return run_held(model, plans, batch, held, job)


def run_held(
    model: Module, plans: list[SitePlan], batch: BatchData, held: Sources, job: Job
) -> tuple[Results, Int[Tensor, "row token"] | None, Float[Tensor, "row token vocabulary"] | None]:
    """As `run_batch`, with the values of the source batch at hand."""
    shares = job.get("between")
    if job["generation"]:
        return generate_and_read(model, plans, batch, held, job)
    cuts = batch["sharing"].get("cuts")
    if cuts:
        refuse_whole(plans, job)
        return forward_in_parts(model, plans, batch, cuts), None, None
    settings = {} if job["logits"] else lean(plans)
    if shares:
        results, output = forward_between(model, plans, batch, held, shares, settings)
    else:
        results, output = forward(model, plans, batch, held, None, settings)
    return results, None, output.logits.detach() if job["logits"] else None


def generate(
    model: Module, plans: list[SitePlan], batch: BatchData, sources: Sources, settings: Mapping[str, Any]
) -> tuple[Results, Int[Tensor, "row token"]]:
    """A generation: workers of the language model visit every step, the others the prompt."""
    context = make_context(batch, settings.get("num_beams") or 1, sources, None, plans)
    results = {}
    # A generation counts positions by itself.
    inputs = {name: value for name, value in batch["inputs"].items() if name != "position_ids"}
    later = wanted_layers([{**plan, "acts": [act for act in plan["acts"] if acts_later(act)]} for plan in plans])
    last = settings.get("max_new_tokens") or max((settings.get("max_length") or 20) - batch["prompt_length"], 1)
    with torch.no_grad(), warnings.catch_warnings():
        # Answers end before the last allowed step; nnsight tells each worker that asked for it.
        warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step the run did not make")
        with model.generate(**settings) as tracer:
            with tracer.invoke(**inputs):
                output = tracer.result.save()
            for plan in plans:
                with tracer.invoke():
                    if plan["stepped"] and (plan["site"] in later or any(map(acts_later, plan["acts"]))):
                        for step in tracer.iter[:last]:
                            serve(plan, model, context, step, results)
                    else:
                        serve(plan, model, context, 0, results)
            for path in batch["sharing"].get("once", []):
                with tracer.invoke():
                    pass_once(find(model, path), batch["sharing"].get("copies", 1), batch["tower"]["axis"])
    refuse_incomplete(context["beside"]["waiting"])
    return results, output


def generate_and_read(
    model: Module, plans: list[SitePlan], batch: BatchData, held: Sources, job: Job
) -> tuple[Results, Int[Tensor, "row token"], Float[Tensor, "row token vocabulary"] | None]:
    """Generate; then read what is asked of generated tokens in one teacher-forced forward over prompt and answer."""
    live = some_acts(plans, False)
    results, ids = generate(model, live, batch, held, job["generation"])
    start = batch["prompt_length"]
    # Some versions return the prompt before the answer, others not.
    answers = ids[:, start:] if ids.shape[1] >= start else ids
    if not job["logits"] and not any(deferred(act) for plan in plans for act in plan["acts"]):
        return results, answers, None
    longer, columns = with_answers(batch, answers, job)
    after = some_acts(plans, True)
    forced, output = forward(model, after, longer, held, columns, {} if job["logits"] else lean(after))
    logits = output.logits[:, start - 1 : -1].detach() if job["logits"] else None
    return {**results, **forced}, answers, logits


def with_answers(batch: BatchData, answers: Int[Tensor, "row token"], job: Job) -> tuple[BatchData, list[int]]:
    """The batch with its answers behind the prompt, and the generation step that each column belongs to."""
    visible = answers.masked_fill(answers == job["end"], job["pad"])
    inputs = extend(batch["inputs"], visible, job["pad"], job["facts"])
    start = batch["prompt_length"]
    before = batch["fields"]["llm"]
    own = with_answers_numbered(lay_out(inputs, job["facts"], start)["llm"], before)
    # What acts on the prompt alone may be given a field that generated tokens have none of.
    kept = {name: lengthened(field, answers.shape[1]) for name, field in before.items() if name not in own}
    fields = {**batch["fields"], "llm": {**kept, **own}}
    columns = [0] * start + [step + 1 for step in range(answers.shape[1])]
    sharing: Sharing = {**batch["sharing"], "answers": longest_answers(answers, batch["sharing"].get("copies", 1), job)}
    return {**batch, "inputs": inputs, "fields": fields, "sharing": sharing}, columns


def lengthened(field: Shaped[Tensor, "row token ..."], columns: int) -> Shaped[Tensor, "row longer ..."]:
    """A field with so many columns of zeros behind it."""
    return torch.cat([field, field.new_zeros(field.shape[0], columns, *field.shape[2:])], dim=1)


def hold(model: Module, plans: list[SitePlan], source: BatchData, between: bool = False) -> Sources:
    """The values that rewires and others are given of the source batch, by site and layer."""
    acts = [(plan, act) for plan in plans for act in plan["acts"]]
    given = {wanted["site"] for _, act in acts for wanted in act["values"].values() if wanted["source"]}
    given |= {plan["site"] for plan, act in acts if act["mode"] == "rewires"}
    given |= {START} if between else set()
    reading: list[SitePlan] = [
        {**plan, "acts": [act_of("source", "reads", plan["site"], itself)]} for plan in plans if plan["site"] in given
    ]
    results, _ = forward(model, reading, source, {}, None, lean(reading))
    return {(site, layer): values[0] for (_, site), layers in results.items() for layer, values in layers.items()}


def itself(value: Shaped[Tensor, "*all"]) -> Shaped[Tensor, "*all"]:
    return value


def acts_later(act: Act) -> bool:
    """Whether an intervention acts at generated tokens."""
    return act["steps"] not in ("prompt", (0,))


def deferred(act: Act) -> bool:
    """A read of generated tokens that does not ask for every beam."""
    return act["mode"] == "reads" and not act["all_beams"] and acts_later(act)


def some_acts(plans: list[SitePlan], after: bool) -> list[SitePlan]:
    """What acts while generating, or afterwards under teacher forcing."""
    chosen: list[SitePlan] = [
        {**plan, "acts": [act for act in plan["acts"] if deferred(act) == after or (after and act["mode"] != "reads")]}
        for plan in plans
    ]
    wanted = wanted_layers(chosen)
    return [plan for plan in chosen if plan["acts"] or plan["site"] in wanted]
