"""Grouping: which of several graphs share a forward, and what each comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from interventions import Graph
from interventions.errors import InvalidType, InvalidValue, MMNeuronError
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.checked import check_once
from mmneuron_lens.runtime.compile import compile_graph, results_over
from mmneuron_lens.runtime.finite import GUARD, guarded, refuse_unsound
from mmneuron_lens.runtime.forms import Forms, forms_of
from mmneuron_lens.runtime.reach import new_tokens
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.run import job_of, needs_source, refuse_unfit, result_of
from mmneuron_lens.wire.together import named_of_copy
from mmneuron_lens.wire.types import Act, Job, Key, Overs, SitePlan, Together

POSITIONS = 16_384
"""Positions of the language model in one forward, unless `max_rows` says otherwise."""


class Many:
    """Graphs compiled for one model, and how they share forwards.

    - plans, overs: by graph
    - job: what they run with
    """

    def __init__(
        self,
        model: Model,
        graphs: Sequence[Graph],
        logits: bool,
        generation: Mapping[str, Any],
        max_rows: int | None,
    ) -> None:
        """Raises what does not fit, as `compile_graph` does, with the place of the graph."""
        if not graphs:
            raise InvalidValue("There is no graph to run; Graph() is the plain model.")
        self.model, self.max_rows = model, checked_max_rows(max_rows)
        self.graphs = [guarded(graph) if generation else graph for graph in graphs]
        self.plans: list[list[SitePlan]] = []
        for place, graph in enumerate(self.graphs):
            with of_graph(place):
                plans = compile_graph(graph, model.architecture, typed=True, attention=model.attentions)
                refuse_all_beams(plans)
                self.plans.append(plans)
        self.overs: list[Overs] = [results_over(graph, model.architecture) for graph in self.graphs]
        self.job: Job = job_of(model, generation, logits)
        self._grouped: dict[int, list[Together]] = {}

    @property
    def rewires(self) -> bool:
        """Whether any graph is given a paired batch's value."""
        return any(map(needs_source, self.plans))

    def check(self, batch: Batch, source: Batch | None) -> None:
        """Raise what does not fit on this batch, as of each graph alone, with its place."""
        for place, (graph, plans) in enumerate(zip(self.graphs, self.plans, strict=True)):
            with of_graph(place):
                refuse_unfit(self.model, plans, batch, source if needs_source(plans) else None, self.job)
                check_once(graph, plans, self.model, batch, bool(self.job["generation"]))

    def at_once(self, batch: Batch) -> int:
        """How many graphs share a forward of this batch. Raises `InvalidValue` where `max_rows` is below its rows."""
        if batch.sharing.get("cuts"):
            # Its parts are run apart, and added up.
            return 1
        if self.max_rows is not None:
            if self.max_rows < batch.rows:
                raise InvalidValue(
                    f"max_rows={self.max_rows} is below the {batch.rows} rows of a batch; encode fewer, or raise it."
                )
            return self.max_rows // batch.rows
        columns = batch.prompt_length + new_tokens(self.job["generation"], batch.prompt_length)
        beams = self.job["generation"].get("num_beams") or 1
        return max(POSITIONS // (columns * batch.rows * beams), 1)

    def grouped(self, at_once: int) -> list[Together]:
        """The graphs in groups of so many; those apart that change what lies before the language model."""
        if at_once not in self._grouped:
            self._grouped[at_once] = list(self._groups(at_once, self.plans))
        return self._grouped[at_once]

    def _groups(self, at_once: int, plans: Sequence[list[SitePlan]]) -> Iterator[Together]:
        for places, size, once in self._kinds(at_once):
            for start in range(0, len(places), size):
                yield self._together(places[start : start + size], once, plans)

    def travelling(self, at_once: int, bare: Callable[[Any], Any]) -> list[Together]:
        """As `grouped`, with functions that are ready to travel. bare: makes one of a function."""
        plans = [self._bare(graph, bare) for graph in self.graphs]
        return list(self._groups(at_once, plans))

    def folds(self, bare: Callable[[Any], Any]) -> list[Overs]:
        """How the results of each graph are folded, by functions that are ready to travel."""
        return [
            {act["key"]: act["over"] for plan in self._bare(graph, bare) for act in plan["acts"] if act["over"]}
            for graph in self.graphs
        ]

    def _bare(self, graph: Graph, bare: Callable[[Any], Any]) -> list[SitePlan]:
        # What checks a function's annotations stays here.
        plans = compile_graph(graph, self.model.architecture, typed=False, attention=self.model.attentions)
        for plan in plans:
            for act in plan["acts"]:
                act["function"] = bare(act["function"])
                act["over"] = bare(act["over"])
        return plans

    def forms(self, place: int, batches: Sequence[Batch]) -> dict[Key, Forms]:
        """What is known before of the results of the graph at one place."""
        if not batches:
            return {}
        model = self.model
        return forms_of(self.plans[place], batches[0], model.architecture, model.module, model.dtype)

    def _kinds(self, at_once: int) -> Iterator[tuple[list[int], int, list[str]]]:
        """Places of graphs of one kind, how many of them share a forward, and the modules that they pass as one."""
        kinds: dict[str, list[int]] = {"alone": [], "before": [], "behind": []}
        for place, plans in enumerate(self.plans):
            kinds[kind_of(plans)].append(place)
        once = list(self.job["facts"].get("once", ()))
        yield kinds["alone"], 1, []
        yield kinds["before"], at_once, []
        yield kinds["behind"], at_once, once

    def _together(self, places: list[int], once: list[str], plans_of: Sequence[list[SitePlan]]) -> Together:
        plans: dict[str, SitePlan] = {}
        for copy, place in enumerate(places):
            for plan in plans_of[place]:
                acts = plan["acts"] if len(places) == 1 else [act_of_copy(act, copy) for act in plan["acts"]]
                before = plans.get(plan["site"])
                plans[plan["site"]] = {**plan, "acts": acts if before is None else [*before["acts"], *acts]}
        ordered = [plans[site] for site in self.model.architecture.sites if site in plans]
        return {"graphs": places, "plans": ordered, "once": once}

    def result(self, place: int, total: dict[Any, Any], answers: list[Tensor], logits: list[Tensor]) -> Result:
        """What the graph at one place comes to. Raises `NotFinite` with its place, as its generation alone would."""
        with of_graph(place):
            total = refuse_unsound(total, self.model.dtype) if self.job["generation"] and total else total
        return result_of(self.model, total, self.overs[place], answers, logits, self.job["pad"])


def act_of_copy(act: Act, copy: int) -> Act:
    """What an act is in a forward that several graphs share."""
    return {**act, "copy": copy, "key": named_of_copy(act["key"], copy)}


def kind_of(plans: list[SitePlan]) -> str:
    """Whether a graph runs alone, or with those that change what is before the language model, or that do not.

    Alone is one that is given values of other sites, or gradients: what they are taken of is the batch.
    """
    acts = [act for plan in plans for act in plan["acts"]]
    if any(act["values"] or act["gradients"] or act["mode"] == "targets" for act in acts):
        return "alone"
    before = any(act["mode"] != "reads" for plan in plans if not plan["stepped"] for act in plan["acts"])
    return "before" if before else "behind"


def refuse_all_beams(plans: list[SitePlan]) -> None:
    """Raise `InvalidValue` for reads of every beam at generated steps: there are as many as the longest answer has."""
    for plan in plans:
        for act in plan["acts"]:
            if act["all_beams"] and act["steps"] not in ("prompt", (0,)) and act["name"] != GUARD.name:
                raise InvalidValue(
                    f"{act['name']} at {plan['site']}: all_beams sees as many steps as the longest answer of all "
                    "graphs has; run this graph alone, or leave all_beams out."
                )


def checked_max_rows(max_rows: object) -> int | None:
    """How many rows a forward has at most; None where positions decide. Raises for what is no number above 0."""
    if max_rows is None:
        return None
    if not isinstance(max_rows, int) or isinstance(max_rows, bool):
        raise InvalidType(f"max_rows is a whole number, not {max_rows!r}.")
    if max_rows < 1:
        raise InvalidValue(f"max_rows is {max_rows}; a forward has at least 1 row.")
    return max_rows


@contextmanager
def of_graph(place: int) -> Iterator[None]:
    """Names the graph in what a user can mend."""
    try:
        yield
    except MMNeuronError as error:
        error.args = (f"graphs[{place}]: {error}", *error.args[1:])
        raise
