"""Run: a graph over many batches on this machine, folded as it goes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from interventions import Graph
from interventions.errors import InvalidType, InvalidValue
from interventions.sites import unknown
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.arguments import paired, refuse_strange, refuse_unlike, refuse_weightless
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.between import refuse_elsewhere
from mmneuron_lens.runtime.checked import check_once
from mmneuron_lens.runtime.compile import SitePlan, compile_graph, results_over, with_start
from mmneuron_lens.runtime.failing import briefly
from mmneuron_lens.runtime.finite import guarded, refuse_unsound
from mmneuron_lens.runtime.fixed import weights_fixed
from mmneuron_lens.runtime.proved import Check
from mmneuron_lens.runtime.reach import refuse_unreached
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.sample_numbers import SampleNumbers
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.wire import fold
from mmneuron_lens.wire.between import START
from mmneuron_lens.wire.parts import refuse_whole
from mmneuron_lens.wire.trace import run_batch
from mmneuron_lens.wire.types import Job, Key, Over


def run(
    model: Model,
    graph: Graph,
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None = None,
    logits: bool = False,
    between: list[float] | None = None,
) -> Result:
    """A forward per batch. Memory does not grow with batches, except for what `over="list"` reads and `logits` keep.

    - sources: for graphs that rewire, one paired batch per batch
    - logits: keep them
    - between: shares of the way from the source batch, at whose points gradients are taken

    Raises what does not fit before the first forward: as `compile_graph` and `check_plans` do.
    """
    return _run(model, graph, batches, sources, logits, {}, between)


def generate(
    model: Model,
    graph: Graph,
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None = None,
    logits: bool = False,
    *,
    generation: Mapping[str, Any],
) -> Result:
    """A generation per batch; as `run`. generation: settings of transformers' `generate`.

    Raises `NotFinite` where a hidden state is infinite or NaN, since the answer would say nothing.
    """
    return _run(model, graph, batches, sources, logits, checked_generation(model, generation))


def check(model: Model, graph: Graph, batch: Batch, generation: Mapping[str, Any]) -> Check:
    """What `run`, or `generate` with these settings, sees before the model runs. Raises what does not fit."""
    plans = compile_graph(graph, model.architecture, typed=True, attention=model.attentions)
    refuse_unfit(model, plans, batch, None, job_of(model, checked_generation(model, generation), False))
    return check_plans(plans, batch, model.architecture, model.module, model.dtype, bool(generation))


def refuse_unfit(model: Model, plans: list[SitePlan], batch: Batch, source: Batch | None, job: Job) -> None:
    """Raise what is wrong with a graph on this batch beside its shapes; takes next to no time."""
    refuse_strange(model, batch)
    if job["generation"]:
        refuse_packed(batch)
        refuse_gradients(plans)
    refuse_unreached(plans, batch, model.architecture, job)
    refuse_parts(plans, batch, job)
    if source is not None:
        refuse_strange(model, source)
        refuse_unlike(plans, batch, source, model, START if job.get("between") else None)


def _run(
    model: Model,
    graph: Graph,
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None,
    logits: bool,
    generation: dict[str, Any],
    between: list[float] | None = None,
) -> Result:
    refuse_weightless(model)
    graph = guarded(graph) if generation else graph
    plans = compile_graph(graph, model.architecture, typed=True, attention=model.attentions)
    overs = results_over(graph, model.architecture)
    job = job_of(model, generation, logits)
    if between:
        refuse_elsewhere(plans)
        plans, job["between"] = with_start(plans, model.architecture), between
    numbers = SampleNumbers(plans)
    total: dict[tuple[str, str], Any] = {}
    answers: list[Tensor] = []
    kept: list[Tensor] = []
    for batch, source in paired(batches, sources, needs_source(plans) or bool(between)):
        batch = batch.to(model.device)
        refuse_unfit(model, plans, batch, source, job)
        check_once(graph, plans, model, batch, bool(generation))
        beside = None if source is None else source.to(model.device).plain()
        try:
            with weights_fixed(model.module, plans):
                found = run_batch(model.nnsight, plans, batch.plain(numbers.of(batch)), beside, job)
        except Exception as error:
            told = briefly(error, plans)
            if told is None:
                raise
            raise told from error.__cause__
        results, answered, logits_of = found
        total = fold.merge(total, fold.stack(results, overs), overs)
        answers += [] if answered is None else list(answered.cpu())
        kept += [] if logits_of is None else [logits_of.cpu()]
    total = refuse_unsound(total, model.dtype) if generation and total else total
    return result_of(model, total, overs, answers, kept, job["pad"])


def checked_generation(model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a generation. Raises `InvalidValue` for a number of tokens or beams below 1, `InvalidType` for one
    that is no whole number, or a setting that transformers does not know.
    """
    known = {*vars(model.module.generation_config), *inspect.signature(model.module.generate).parameters}
    for name in settings:
        if name not in known:
            near = unknown("setting of generation", name, sorted(known)).partition(" Choices: ")[0]
            raise InvalidType(f"{near} Those of transformers' GenerationConfig are known.")
    for name, least in (
        ("max_new_tokens", "an answer has at least 1 token"),
        ("num_beams", "there is at least 1 beam"),
    ):
        number = settings.get(name, 1)
        if not isinstance(number, int) or isinstance(number, bool):
            raise InvalidType(f"{name} is a whole number, not {number!r}.")
        if number < 1:
            raise InvalidValue(f"{name} is {number}; {least}.")
    return dict(settings)


def refuse_packed(batch: Batch) -> None:
    """Raise `InvalidValue` for a batch whose rows hold several prompts, or answers: none of them could be answered."""
    if batch.answers:
        raise InvalidValue("This batch has answers behind its prompts; encode it without answers to generate.")
    if batch.sharing or any(isinstance(text, tuple) and len(text) > 1 for text in batch.given[1]):
        raise InvalidValue("A packed batch is not for generation; make one with lens.encode(images, texts).")


def refuse_gradients(plans: list[SitePlan]) -> None:
    """Raise `InvalidValue` for a graph that takes gradients, which a generation does not have."""
    names = [act["name"] for plan in plans for act in plan["acts"] if act["gradients"]]
    if names:
        raise InvalidValue(
            f"{names[0]}: gradients are those of a forward; append the answers, lens.encode(images, texts, "
            "answers=out.tokens), and use lens.run."
        )


def refuse_parts(plans: list[SitePlan], batch: Batch, job: Job) -> None:
    """Raise `InvalidValue` for a graph that needs whole rows of a batch that runs in parts."""
    if batch.sharing.get("cuts"):
        try:
            refuse_whole(plans, job)
        except ValueError as error:
            raise InvalidValue(str(error)) from error


def needs_source(plans: list[SitePlan]) -> bool:
    """Whether any part of a compiled graph is given a paired batch's value."""
    acts = [act for plan in plans for act in plan["acts"]]
    return any(act["mode"] == "rewires" or any(one["source"] for one in act["values"].values()) for act in acts)


def job_of(model: Model, generation: Mapping[str, Any], logits: bool) -> Job:
    """What `wire.trace.run_batch` needs to know beside the plans."""
    tokenizer = model.processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "generation": dict(generation),
        "logits": logits,
        "facts": model.architecture.facts,
        "pad": pad,
        "end": tokenizer.eos_token_id,
        "ends": ends_of(model, generation),
        # What a packed batch's mask is made of.
        "additive": model.dtype if model.attention == "eager" else None,
        "missing": model.missing,
    }


def ends_of(model: Model, generation: Mapping[str, Any]) -> list[int]:
    """The ids of the tokens that end an answer, as transformers takes them from the settings or the checkpoint."""
    ends = generation.get("eos_token_id", getattr(model.module.generation_config, "eos_token_id", None))
    ends = model.processor.tokenizer.eos_token_id if ends is None else ends
    return [int(one) for one in (ends if isinstance(ends, list | tuple) else [ends])]


def result_of(
    model: Model,
    total: dict[tuple[str, str], Any],
    overs: Mapping[Key, Over],
    answers: list[Tensor],
    logits: list[Tensor],
    pad: int,
) -> Result:
    """What was folded, with answers as text and as tokens without padding; none where nothing was generated."""
    tokenizer = model.processor.tokenizer
    # Of no answer at all, transformers makes one empty text.
    text = tokenizer.batch_decode(answers, skip_special_tokens=True) if answers else []
    return Result(total, [answer.strip() for answer in text], [row[row != pad] for row in answers], logits, overs)
