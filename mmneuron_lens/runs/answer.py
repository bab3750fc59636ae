"""Answers in a run: questions answered with neurons off, their official scores, and the means that may hold neurons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmneuron_lens.artifacts.answers import Answers
from mmneuron_lens.artifacts.means import Means
from mmneuron_lens.artifacts.official_scores import OfficialScores
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.frames import told_by_domain
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.evaluation.official_scores import score_answers
from mmneuron_lens.experiments.ablate import ablate, generation_settings
from mmneuron_lens.experiments.conditions import Off
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.fingerprint import settings_of, tokenizer_facts
from mmneuron_lens.lens import Lens
from mmneuron_lens.metrics.lingo_judge import LingoJudge
from mmneuron_lens.runs.folder import key_of, selection_facts
from mmneuron_lens.runs.rows import rows_of
from mmneuron_lens.runs.store import Store
from mmneuron_lens.wire.describe import weights_of

CONDITIONS = ("modules", "random_draws", "seed", "match", "cross", "controls")
"""Settings of `ablate` that say under which conditions questions are asked; others are of `generate`."""


def answer_stage(
    lens: Lens,
    selection: Selection,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    selection_id: str = "",
    off: Off | None = None,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    problems: Problems | None = None,
    progress: Progress = quietly,
    **settings: Any,
) -> Answers:
    """The answers to every question under every condition; one that is there, whatever it was given for, is not given
    again.

    - selection_id: the `content_hash` of the saved selection.
    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - settings: those of `ablate`.
    """
    conditions = {name: settings[name] for name in CONDITIONS if name in settings}
    generation = generation_settings({name: value for name, value in settings.items() if name not in CONDITIONS})
    put: dict[str, Any] = {"prompt": prompt, "frames": frames, "prompt_form": prompt_form}
    facts = {
        **lens.model.facts(),
        **selection_facts(selection, selection_id),
        "questions": {domain: content_digest(samples) for domain, samples in samples_by_domain.items()},
        "off": (off or Off()).described,
        "conditions": conditions,
        "prompt": prompt,
        **told_by_domain(lens, samples_by_domain, **put, new_tokens=generation["max_new_tokens"]),
        "generation": generation,
    }
    key = key_of("answers", selection.model, facts=facts, suffix=".jsonl")

    def make(keeper: Any) -> Answers:
        found = ablate(
            lens, selection, samples_by_domain, off=off, rows=rows_of(keeper), batch_size=batch_size,
            selection_id=selection_id, problems=problems, progress=progress, **put, **settings,
        )  # fmt: skip
        return Answers(tuple(found), facts)

    answers = store.get_or_make(key, make, Answers, what=f"{lens.name}: answering with neurons off")
    answered = {one.domain for one in answers}
    if unanswered := [domain for domain in samples_by_domain if domain not in answered]:
        store.say(f"{lens.name}: no question of {', '.join(unanswered)} could be asked; see the problems of its rows.")
    return answers


def score_stage(
    answers: Answers,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    corpora: Mapping[str, str],
    store: Store,
    *,
    model: str,
    answers_id: str,
    judge: str | None = None,
) -> OfficialScores:
    """The official scores of a model's answers.

    - corpora: by domain, those that have one.
    - answers_id: the `content_hash` of the saved answers.
    - judge: folder or hub id of Lingo-Judge.
    """
    loaded = None if judge is None else LingoJudge.load(judge)
    facts = {"answers": answers_id, "corpora": dict(corpora), "judge": None if loaded is None else judge_facts(loaded)}
    return store.get_or_make(
        key_of("official_scores", model, facts=facts, suffix=".jsonl"),
        lambda _: score_answers(answers, samples_by_domain, corpora, loaded),
        OfficialScores,
        what=f"{model}: scoring answers",
    )


def judge_facts(judge: LingoJudge) -> dict[str, str]:
    """What says which judge it is: its name, and the sha256 of its configuration, tokenizer and weights."""
    parts = [settings_of(judge.model.config), tokenizer_facts(judge.tokenizer), weights_of(judge.model)]
    text = json.dumps(parts, sort_keys=True, default=str)
    return {"name": judge.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def off_stage(
    lens: Lens,
    how: str,
    factor: float,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    batch_size: int = 32,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> Off:
    """How neurons are switched off; for "mean", with the means over these questions, asked as they are answered."""
    if how != "mean":
        return Off(how, factor)  # pyright: ignore[reportArgumentType]
    put: dict[str, Any] = {"prompt": "evaluation", "frames": frames, "prompt_form": prompt_form}
    shared: dict[str, Any] = {"batch_size": batch_size, "problems": problems, "progress": progress, **put}
    questions = {domain: content_digest(samples) for domain, samples in samples_by_domain.items()}
    facts = {**lens.model.facts(), "questions": questions, "batch size": batch_size}
    facts |= told_by_domain(lens, samples_by_domain, **put)
    key = key_of("means", lens.name, facts=facts)
    means = store.get_or_make(
        key,
        lambda keeper: mean_activations(lens, samples_by_domain, keeper=keeper, **shared),
        Means,
        what=f"{lens.name}: averaging activations",
    )
    return Off("mean", means=means.values)
