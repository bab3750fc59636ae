"""Ablate: do a domain's neurons matter more to its questions than as many random ones (section 4.2.2)?

Questions are answered by generation under conditions: nothing off ("none"), the domain's selected neurons off
("domain"), and draws of as many random neurons off ("random 1", "random 2", ...).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypedDict

from interventions import Graph
from interventions.errors import NotFinite
from mmneuron_lens.artifacts.answers import ALL, Answer
from mmneuron_lens.artifacts.format import dumps
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.batches import sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.left_out import LeftOut, NoneLeft, attributed, raise_none_left
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.content import sample_digest
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.conditions import Condition, Match, Off, conditions_of
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch


class Generation(TypedDict, total=False):
    """Settings of `generate` that the paper names; any other that transformers knows may stand beside them."""

    num_beams: int
    length_penalty: float
    max_new_tokens: int
    do_sample: bool


PAPER_GENERATION = Generation(num_beams=5, length_penalty=-1.0, max_new_tokens=512, do_sample=False)
"""Section 4.1.3. Its temperature of 0.9 acts only when sampling, which beam search does not."""


class AnswerRows(Protocol):
    """Where answers are kept while the others are given, by their digest."""

    def get(self, digest: str, /) -> Answer | None: ...

    def add(self, answers: Sequence[Answer], /) -> None: ...


class MemoryRows:
    """Answers of this process alone."""

    def __init__(self) -> None:
        self._known: dict[str, Answer] = {}

    def get(self, digest: str) -> Answer | None:
        return self._known.get(digest)

    def add(self, answers: Sequence[Answer]) -> None:
        self._known |= {one.digest: one for one in answers}


def generation_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `ablate` generates with: greedy decoding of at most 16 new tokens, and what is given over it."""
    return {"do_sample": False, "num_beams": 1, "max_new_tokens": 16, **given}


def ablate(
    lens: Lens,
    selection: Selection,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    modules: Sequence[str] = (ALL,),
    random_draws: int = 3,
    seed: int = 0,
    match: Match = "module",
    off: Off | None = None,
    cross: bool = False,
    controls: Sequence[str] | None = None,
    rows: AnswerRows | None = None,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    selection_id: str = "",
    problems: Problems | None = None,
    progress: Progress = quietly,
    **generation: Any,
) -> list[Answer]:
    """Every answer to every question under every condition, in the order of domains, conditions and samples.

    - modules, random_draws, seed, match, off, cross, controls: see `conditions_of`.
    - rows: answers that are there already are not generated again.
    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - selection_id: the `content_hash` of the saved selection, kept with every answer.
    - problems: where a sample is named that cannot be decoded, encoded or run; it has no answer under any condition.
      A domain of which all are has none; if no domain has one, the first reason is raised.
    - generation: settings of `generate`, over greedy decoding of at most 16 new tokens.
    """
    rows = MemoryRows() if rows is None else rows
    settings = generation_settings(generation)
    room = settings["max_new_tokens"]
    how: dict[str, Any] = {"frames": frames, "prompt_form": prompt_form, "new_tokens": room}

    def answered(domain: str, samples: Sequence[Sample]) -> list[Answer]:
        conditions = conditions_of(
            selection, domain, modules=modules, random_draws=random_draws, seed=seed, match=match, off=off,
            controls=controls, cross=cross,
        )  # fmt: skip
        left = LeftOut(problems)
        put = {one.id: asked_as(lens, [one], prompt, **how) for one in askable(lens, samples, prompt, problems)}
        found = sized([one for shown, _ in put.values() for one in shown], problems)
        questions = {
            (id(condition), one.sample.id): AskedQuestion(
                lens, selection.model, selection_id, one.sample, condition, prompt, put[one.sample.id][1], settings
            )
            for condition in conditions
            for one in found
        }

        def known(condition: Condition, sample: Sample) -> Answer | None:
            return rows.get(questions[id(condition), sample.id].digest)

        steps = steps_of(found, batch_size, buckets=False)
        asking = _Asking(lens, partial(encode, lens, prompt=prompt, problems=left, **how), settings)
        for step in progress(steps, f"answering {domain} under {len(conditions)} conditions"):
            shown = [one for one in step.samples if not left.holds(one)]
            for some, todo in _alike(conditions, shown, known):
                say = partial(asking.answers, [condition.graph for condition in some])
                said, _ = attributed(todo, say, left, lambda sample: sample)
                given = [
                    questions[id(condition), one.id].answered(text)
                    for condition, pairs in zip(some, said or [[]] * len(some), strict=True)
                    for one, text in pairs
                ]
                if given:
                    rows.add(given)
        if samples and all(left.holds(one.sample) for one in found):
            raise_none_left(samples, left.reason(found[0].sample), left.cause)
        asked = [
            questions[id(condition), sample.id]
            for condition in conditions
            for sample in samples
            if (id(condition), sample.id) in questions and not left.holds(sample)
        ]
        there = [rows.get(one.digest) for one in asked]
        return [question.answered(one.answer) for question, one in zip(asked, there, strict=True) if one]

    answers: list[Answer] = []
    nothing: NoneLeft | None = None
    for domain, samples in samples_by_domain.items():
        try:
            answers += answered(domain, samples)
        except NoneLeft as error:
            nothing = nothing or error
    if nothing and not answers:
        raise nothing
    return answers


class AskedQuestion:
    """One question under one condition, and the digest of everything its answer depends on."""

    def __init__(
        self, lens: Lens, model: str, selection: str, sample: Sample, condition: Condition, prompt: Prompt,
        put: Mapping[str, Any], settings: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.selection, self.sample, self.condition = model, selection, sample, condition
        facts = [lens.model.facts(), condition.digest, sample_digest(sample), prompt, dict(settings)]
        facts += [dict(put)] if put else []
        self.digest = hashlib.sha256(dumps(facts).encode()).hexdigest()

    def answered(self, text: str) -> Answer:
        """The answer to it."""
        return Answer(
            model=self.model,
            module=self.condition.module,
            condition=self.condition.condition,
            neurons_of=self.condition.neurons_of,
            domain=self.sample.domain,
            id=self.sample.id,
            question=self.sample.question,
            answers=self.sample.answers,
            answer=text,
            selection=self.selection,
            digest=self.digest,
            options=self.sample.options,
        )


def _alike(
    conditions: Sequence[Condition], samples: Sequence[Sample], known: Callable[[Condition, Sample], Answer | None]
) -> list[tuple[list[Condition], list[Sample]]]:
    """Conditions that the same samples are to be asked under, with these samples; those that lack none are left out."""
    found: dict[tuple[str, ...], tuple[list[Condition], list[Sample]]] = {}
    for condition in conditions:
        todo = [one for one in samples if not known(condition, one)]
        if todo:
            found.setdefault(tuple(one.id for one in todo), ([], todo))[0].append(condition)
    return list(found.values())


Encode = Callable[[Sequence[Sample]], tuple[Batch | None, list[Sample]]]
"""Samples to a batch, and those of them that could be encoded."""


class _Asking:
    """Asks the samples of a batch under several graphs; the last batch is held encoded."""

    def __init__(self, lens: Lens, encode: Encode, settings: Mapping[str, Any]) -> None:
        self.lens, self.encode, self.settings = lens, encode, dict(settings)
        self.asked: list[Sample] = []
        self.held: tuple[Batch | None, list[Sample]] = (None, [])

    def answers(self, graphs: Sequence[Graph], asked: Sequence[Sample]) -> list[list[tuple[Sample, str]]]:
        """The answers, under each graph, to those of the samples that can be encoded."""
        if self.asked != list(asked):
            self.asked, self.held = list(asked), self.encode(asked)
        batch, kept = self.held
        if batch is None:
            return [[] for _ in graphs]
        try:
            found = self.lens.generate(graphs, batch, **self.settings)
        except NotFinite as error:
            # Of which graph is nothing that whoever asked has seen.
            raise NotFinite(re.sub(r"^graphs\[\d+\]: ", "", str(error))) from error
        return [list(zip(kept, out.text, strict=True)) for out in found]
