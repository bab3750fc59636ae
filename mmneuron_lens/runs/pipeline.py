"""The pipeline: every stage of the paper on one model, each value made unless it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interventions.errors import UnknownName
from mmneuron_lens.artifacts.answers import ALL
from mmneuron_lens.artifacts.embeddings import Embeddings
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import some_of
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.conditions import modules_of
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.experiments.entropy import read_entropy
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.answer import answer_stage, off_stage, score_stage
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.deviate import deviate_stage
from mmneuron_lens.runs.examples import examples_stage
from mmneuron_lens.runs.folder import file_of, key_of
from mmneuron_lens.runs.identify import select_stage
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.questions import Questions
from mmneuron_lens.runs.reading_stages import read_further
from mmneuron_lens.runs.store import Codec, Store

ByDomain = Mapping[str, Sequence[Sample]]


def run_model(
    lens: Lens,
    questions: Questions,
    plan: Plan,
    store: Store,
    *,
    again: Sequence[str] = (),
    progress: Progress = quietly,
) -> Selection:
    """All stages on one model; returns its selection.

    - store: the run's folder.
    - again: the command line that runs this, for `mmneuron jobs resume`.
    """
    assert store.folder is not None
    there = {one.id for some in questions.evaluation.values() for one in some}
    if absent := [name for name in plan.lens_questions if name not in there]:
        raise UnknownName(
            f"no question {absent[0]!r} is answered in this run; give an id of its questions, such as {min(there)!r}."
        )
    shared: dict[str, Any] = {"batch_size": plan.batch_size, "problems": questions.problems, "progress": progress}
    put: dict[str, Any] = {"frames": plan.frames, "prompt_form": plan.prompt_form}
    count_stage(lens, questions.identification, store, corpus=questions.name, again=again, **shared, **put)
    rule: dict[str, Any] = {"fraction": plan.fraction, "percentile": plan.percentile}
    (found,) = select_stage(
        store.folder, store, model=lens.name, permutations=plan.permutations, seed=plan.seed, progress=progress, **rule
    )
    selection = found.selection
    if plan.example_images:
        shown = {domain: some_of(some, plan.example_images) for domain, some in questions.identification.items()}
        examples_stage(
            lens, selection, shown, store, k=plan.examples, corpus=questions.name, again=again, **shared, **put
        )
    cited = content_hash(file_of(store.folder, "selection", lens.name))
    asked = {domain: some for domain, some in questions.evaluation.items() if domain in selection.domains}
    off = off_stage(lens, plan.off, plan.factor, asked, store, **shared, **put)
    answers = answer_stage(
        lens, selection, asked, store, selection_id=cited, off=off, modules=(*modules_of(selection), ALL),
        random_draws=plan.ablation_draws, controls=(ALL,), seed=plan.seed, cross=plan.cross, **shared,
        **put, **plan.generation,
    )  # fmt: skip
    if questions.corpora:
        file = file_of(store.folder, "answers", lens.name, suffix=".jsonl")
        score_stage(
            answers, asked, questions.corpora, store, model=lens.name, answers_id=content_hash(file), judge=plan.judge
        )
    answered = {(one.domain, one.id) for one in answers.answers}
    # What no model could answer is not read layer by layer either.
    asked = {domain: [one for one in some if (domain, one.id) in answered] for domain, some in asked.items()}
    read_model(lens, selection, cited, questions.identification, asked, off, plan, store, shared)
    return selection


def read_model(
    lens: Lens,
    selection: Selection,
    cited: str,
    identification: ByDomain,
    evaluation: ByDomain,
    off: Any,
    plan: Plan,
    store: Store,
    shared: dict[str, Any],
) -> None:
    """What needs forwards alone: deviations, entropies, embeddings, traces, and what goes beyond the paper."""
    facts = {**lens.model.facts(), "batch size": plan.batch_size}
    put: dict[str, Any] = {"frames": plan.frames, "prompt_form": plan.prompt_form}

    def each(kind: str, what: str, prompt: Prompt, asked: ByDomain, codec: type[Codec], make: Any) -> None:
        for domain, samples in asked.items():
            own = {"questions": content_digest(samples), **asked_as(lens, samples, prompt, **put)[1]}
            store.get_or_make(
                key_of(kind, lens.name, domain, facts={**facts, **own}),
                lambda keeper, samples=samples: make(samples, keeper),
                codec,
                what=f"{lens.name}: {what} {domain}",
            )

    deviate_stage(
        lens, selection, {domain: some[: plan.deviation_questions] for domain, some in evaluation.items()}, store,
        selection_id=cited, random_draws=plan.random_draws, seed=plan.seed, off=off, **shared, **put,
    )  # fmt: skip
    each(
        "entropies",
        "entropy of the next token by layer,",
        "identification",
        {domain: some_of(some, plan.entropy_images) for domain, some in identification.items()},
        Entropies,
        lambda samples, keeper: read_entropy(lens, samples, keeper=keeper, **shared, **put),
    )
    seen = {domain: some_of(some, plan.embedding_images, 1) for domain, some in identification.items()}
    several = any(len(one.images) > 1 for some in seen.values() for one in some)
    frames = {"frames": plan.frames} if several else {}
    images = {domain: content_digest(samples) for domain, samples in seen.items()}
    store.get_or_make(
        key_of("embeddings", lens.name, facts={**facts, "questions": images, **frames}),
        lambda keeper: embed_images(lens, seen, frames=plan.frames, keeper=keeper, **shared),
        Embeddings,
        what=f"{lens.name}: embedding images",
    )
    shown = {domain: _chosen(some, plan.lens_questions) for domain, some in evaluation.items()}
    for number in range(plan.traces):
        each(
            f"traces/{number + 1}",
            "reading the layers,",
            "evaluation",
            {domain: some[number : number + 1] for domain, some in shown.items() if len(some) > number},
            LensTrace,
            lambda samples, _: trace_sample(lens, samples[0], **put),
        )
    first = {domain: some[: min(1, plan.traces)] for domain, some in shown.items()}
    read_further(lens, identification, evaluation, first, plan, store, shared)


def _chosen(samples: Sequence[Sample], ids: Sequence[str]) -> list[Sample]:
    """The samples with those of these ids first, in the order of the ids."""
    named = {one.id: one for one in samples}
    first = [named[name] for name in ids if name in named]
    return first + [one for one in samples if one.id not in ids]
