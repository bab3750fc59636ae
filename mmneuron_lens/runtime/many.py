"""Many: several graphs on the same batches in few forwards, each as if it ran alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from interventions import Graph
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.arguments import paired, refuse_weightless
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.failing import briefly
from mmneuron_lens.runtime.fixed import weights_fixed
from mmneuron_lens.runtime.grouping import Many
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.run import checked_generation
from mmneuron_lens.runtime.sample_numbers import SampleNumbers
from mmneuron_lens.wire import fold
from mmneuron_lens.wire.together import run_together
from mmneuron_lens.wire.types import PairedItem, Returned


def run_many(
    model: Model,
    graphs: Sequence[Graph],
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None = None,
    logits: bool = False,
    remote: bool | str = False,
    generation: Mapping[str, Any] | None = None,
    max_rows: int | None = None,
) -> list[Result]:
    """A result for each graph, as if it ran alone, of few forwards or generations of each batch.

    The rows of a batch are repeated, a copy for each graph. Modules before the language model see one copy, unless a
    graph changes something there, or their architecture's facts name none.

    - sources: one paired batch per batch, which runs once for all graphs
    - remote: as in `runtime.remote.run_remote`; the copies are made where the model is
    - generation: settings of transformers' `generate`; a forward if left out
    - max_rows: of the batch's copies in a forward; as many as come to 16,384 positions if left out

    Raises as `run` and `generate` do, with the place of the graph.
    """
    if not remote:
        refuse_weightless(model)
    many = Many(model, graphs, logits, checked_generation(model, generation or {}), max_rows)
    if remote:
        return _there(many, list(batches), None if sources is None else list(sources), remote)
    totals: list[dict[Any, Any]] = [{} for _ in graphs]
    answers: list[list[Tensor]] = [[] for _ in graphs]
    kept: list[list[Tensor]] = [[] for _ in graphs]
    numbers = SampleNumbers([plan for plans in many.plans for plan in plans])
    for batch, source in paired(batches, sources, many.rewires):
        batch = batch.to(model.device)
        many.check(batch, source)
        groups = many.grouped(many.at_once(batch))
        beside = None if source is None else source.to(model.device).plain()
        try:
            with weights_fixed(model.module, [plan for plans in many.plans for plan in plans]):
                found = run_together(model.nnsight, groups, batch.plain(numbers.of(batch)), beside, many.job)
        except Exception as error:
            told = briefly(error, [plan for group in groups for plan in group["plans"]])
            if told is None:
                raise
            raise told from error.__cause__
        for place, (results, answered, logits_of) in found.items():
            overs = many.overs[place]
            totals[place] = fold.merge(totals[place], fold.stack(results, overs), overs)
            answers[place] += [] if answered is None else list(answered.cpu())
            kept[place] += [] if logits_of is None else [logits_of.cpu()]
    return [many.result(place, totals[place], answers[place], kept[place]) for place in range(len(graphs))]


def _there(many: Many, batches: list[Batch], sources: list[Batch] | None, remote: bool | str) -> list[Result]:
    """One blocking session for all graphs and batches; raises as `runtime.remote.run_remote` does."""
    # Loaded where it is needed: it imports nnsight.
    from mmneuron_lens.runtime.remote import in_one_line, ready_backend
    from mmneuron_lens.runtime.returned import checked_returned
    from mmneuron_lens.runtime.shipping import bare
    from mmneuron_lens.runtime.transport import WHOSE, RemoteFailed
    from mmneuron_lens.wire.job import run_many as entry_of

    pairs = list(paired(batches, sources, many.rewires))
    for batch, source in pairs:
        many.check(batch, source)
    numbers = SampleNumbers([plan for plans in many.plans for plan in plans])
    items: list[PairedItem] = [
        {**batch.travelling(numbers.of(batch)), "source": None if source is None else source.travelling()}
        for batch, source in pairs
    ]
    made: dict[int, Any] = {}
    groups = many.travelling(min((many.at_once(batch) for batch in batches), default=1), lambda one: bare(one, made))
    held, backend, entry = many.model.nnsight, ready_backend(many.model, remote), bare(entry_of, made)
    # What stands in the session travels, so plain names alone.
    job, overs, folds = many.job, many.overs, many.folds(lambda one: bare(one, made))
    with in_one_line(backend), held.session(backend=backend):
        returned = entry(held, groups, items, job, folds).save()
    found = cast("list[Returned]", returned)
    if remote != "local":
        sent: Any = backend.found.get("returned")
        if not isinstance(sent, list) or len(cast("list[Any]", sent)) != len(many.graphs):
            raise RemoteFailed(f"{backend.host}: a job came back without a result for each graph; {WHOSE}.")
        found = [
            checked_returned(one, over, len(batches), backend.host, many.forms(place, batches))
            for place, (one, over) in enumerate(zip(cast("list[Any]", sent), overs, strict=True))
        ]
    return [many.result(place, one["values"], one["answers"], one["logits"]) for place, one in enumerate(found)]
