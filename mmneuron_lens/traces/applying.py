"""Applying: a whole graph inside an nnsight trace, in the worker of the block or in workers of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from interventions import Graph
from interventions.errors import InvalidValue
from interventions.sites import site_order
from interventions.values import Gradient, ValueOf
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.arguments import refuse_weightless
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.checked import check_once
from mmneuron_lens.runtime.compile import compile_graph, results_over
from mmneuron_lens.runtime.failing import briefly
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.wire import fold
from mmneuron_lens.wire.execute import serve
from mmneuron_lens.wire.forward import make_context
from mmneuron_lens.wire.layout import lay_out
from mmneuron_lens.wire.numbering import asks_for_samples, numbered
from mmneuron_lens.wire.types import Context, Overs, Results, SitePlan

STAGES = {"vision": 0, "qformer": 1, "projector": 2, "llm": 3}
"""What runs after what, by the first word of a site."""


def apply(model: Model, graph: Graph, tracer: Any = None) -> Result:
    """A graph in the forward under way, beside whatever else the trace does.

    - tracer: of `with lens.trace() as tracer:`, outside its invokes: each site is then served by a worker of its own,
      in any order, and the results are there when the trace has ended. Left out, in the block of a trace or an invoke:
      the block goes through the forward up to the last site of the graph, and has the results at once.

    Returns values as functions returned them, layers stacked, of this forward alone. In a generation it acts in the
    step under way. Raises as `lens.run` does for a graph that does not fit, and `InvalidValue` outside a trace, for a
    graph that rewires or binds `value_of` or `gradient`, and where the model already ran past a site of the graph.
    """
    refuse_weightless(model)
    _refuse(graph)
    plans = compile_graph(graph, model.architecture, typed=True, attention=model.attentions)
    for act in (act for plan in plans for act in plan["acts"] if act["mode"] == "reads"):
        act["function"] = _without_graph(act["function"])
    overs = results_over(graph, model.architecture)
    if tracer is None or _worker() is not None:
        return _in_block(model, graph, plans, overs)
    return _in_workers(model, graph, plans, overs, tracer)


def _refuse(graph: Graph) -> None:
    for one in graph:
        if one.mode == "rewires":
            raise InvalidValue(f"{one.name} rewires, and a trace has no source batch; use lens.run(sources=...).")
        for name, bound in one.bindings.items():
            if isinstance(bound, ValueOf | Gradient):
                raise InvalidValue(
                    f"{one.name}: {name}={bound.show()} needs more than one pass through the sites; use lens.run, or "
                    "read .value and .grad in the trace itself."
                )


def _without_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """A read as `lens.run` calls it: where autograd does not look."""

    @functools.wraps(function)
    def call(value: Shaped[Tensor, "..."], **arguments: Any) -> Any:
        with torch.no_grad():
            return function(value, **arguments)

    return call


def _worker() -> Any:
    """nnsight's worker that runs the block; None outside one."""
    from nnsight.intervention.interleaver import Mediator

    try:
        return Mediator.current("lens.apply")
    except ValueError:
        return None


def _in_block(model: Model, graph: Graph, plans: list[SitePlan], overs: Overs) -> Result:
    import nnsight
    from nnsight.intervention.interleaver import OutOfOrderError

    worker = _worker()
    if worker is None or worker.interleaver is not model.nnsight.interleaver:
        raise InvalidValue(
            "lens.apply acts while the model runs: write it inside `with lens.trace(batch):`, or give it the tracer, "
            "lens.apply(graph, tracer), beside `with tracer.invoke(**batch.inputs):`."
        )
    context = _context(model, graph, plans)
    results: Results = {}
    for plan, step in _walk(model, plans, worker):
        try:
            with _briefly(plans):
                serve(plan, model.nnsight, context, step, results)
        except OutOfOrderError:
            if worker.iteration != 0:
                raise
            raise InvalidValue(
                f"lens.apply: the model already ran past {_shown(plan)}; apply a graph before the block asks for "
                "a later value, or give it the tracer, lens.apply(graph, tracer), beside the trace's invokes."
            ) from None
    # Kept behind the trace, as what is saved.
    return nnsight.save(Result(fold.stack(results, overs), [], [], [], overs))


def _walk(model: Model, plans: list[SitePlan], worker: Any) -> Iterator[tuple[SitePlan, int]]:
    """The sites of plans, layer by layer as the model comes by them, and which step of a generation is under way."""
    first = next((path for plan in plans if plan["stepped"] for _, path in plan["places"]), None)
    step = 0 if first is None else worker.wanted(f"{model.nnsight.path}.{first}.output")
    singles: list[SitePlan] = [{**plan, "places": [place]} for plan in plans for place in plan["places"]]
    for plan in sorted(singles, key=_when):
        if plan["stepped"] or step == 0:
            yield plan, step


def _when(plan: SitePlan) -> tuple[int, int, int, float]:
    """Sorts sites of one layer each in the order in which a model comes by them."""
    site, (layer, path) = plan["site"], plan["places"][0]
    phase = 0 if site == "llm.embedding" else 2 if layer is None else 1
    order = float(site_order(site))
    if site.endswith(".attention.pattern"):
        # Attention returns its weights when its heads are mixed.
        order = site_order(site.replace(".pattern", ".out")) + 0.5
    elif site.endswith(".attention.out") and "layernorm" in path.rpartition(".")[2]:
        order += 0.75
    return STAGES[site.partition(".")[0]], phase, layer or 0, order


def _shown(plan: SitePlan) -> str:
    layer = plan["places"][0][0]
    return plan["site"] if layer is None else f"{plan['site']} layer {layer}"


@contextmanager
def _briefly(plans: list[SitePlan]) -> Iterator[None]:
    """What a function of the graph raises, as `lens.run` shows it."""
    try:
        yield
    except Exception as error:
        told = briefly(error, plans)
        if told is None:
            raise
        raise told from error.__cause__


def _in_workers(model: Model, graph: Graph, plans: list[SitePlan], overs: Overs, tracer: Any) -> Result:
    import nnsight

    if getattr(tracer, "envoy", None) is not model.nnsight or getattr(tracer.fn, "__name__", "") == "generate":
        raise InvalidValue(
            "lens.apply takes the tracer of this lens's forward, `with lens.trace() as tracer:`; in a generation, "
            "write `lens.apply(graph)` in the block."
        )
    results: Results = {}
    for plan in plans:
        with tracer.invoke():
            _serve_all(model, graph, plans, plan, results)
    return nnsight.save(Later(results, overs, model.nnsight.interleaver))


def _serve_all(model: Model, graph: Graph, plans: list[SitePlan], plan: SitePlan, results: Results) -> None:
    with _briefly(plans):
        serve(plan, model.nnsight, _context(model, graph, plans), 0, results)


class Later(Result):
    """Results that are there when the trace has ended; before, `InvalidValue`."""

    def __init__(self, results: Results, overs: Overs, interleaver: Any) -> None:
        super().__init__({}, [], [], [], overs)
        self._results, self._folds, self._interleaver = results, overs, interleaver

    def _settled(self) -> None:
        if self._interleaver.mediators:
            raise InvalidValue("What lens.apply(graph, tracer) gives is there when the trace has ended.")
        if not self._folded:
            super().__init__(fold.stack(self._results, self._folds), [], [], [], self._folds)

    def __getitem__(self, key: tuple[str, str] | str) -> Any:
        self._settled()
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self._settled()
        return super().__iter__()

    def __len__(self) -> int:
        self._settled()
        return super().__len__()

    def __repr__(self) -> str:
        return "Result of a trace that has not ended" if self._interleaver.mediators else super().__repr__()


def _batch_of(model: Model, given: Mapping[str, Any]) -> Batch:
    """What the inputs of a forward say of their positions."""
    inputs = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    mask = inputs.get("attention_mask")
    if "input_ids" not in inputs or mask is None or mask.ndim != 2:
        raise InvalidValue(
            "lens.apply needs to know which positions count: open the trace with `with lens.trace(batch):`, or the "
            "invoke with `**batch.inputs` of a batch that is not packed."
        )
    facts = model.architecture.facts
    length = inputs["input_ids"].shape[1]
    return Batch(inputs, lay_out(inputs, facts), (), length, facts, model.processor.tokenizer)


def _context(model: Model, graph: Graph, plans: list[SitePlan]) -> Context:
    """What workers know of the batch under way, on which the graph is checked first."""
    interleaver = model.nnsight.interleaver
    given = dict(interleaver.batcher.kwargs)
    for _, keywords in interleaver.batcher.invokes:
        given.update(keywords)
    given.update(interleaver.batcher.extra_kwargs)
    batch = getattr(interleaver, "given_batch", None) or _batch_of(model, given)
    running, interleaver.interleaving = interleaver.interleaving, False
    try:
        check_once(graph, plans, model, batch)
    finally:
        interleaver.interleaving = running
    beams = max(given.get("num_beams") or 1, given.get("num_return_sequences") or 1)
    given_rows = batch.plain()
    if asks_for_samples(plans):
        given_rows = numbered(given_rows, model.architecture.facts)
    return make_context(given_rows, beams, {}, None, plans)
