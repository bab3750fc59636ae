"""Official scores: every answer by the score of its domain's corpus; needs no model but a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmneuron_lens import metrics
from mmneuron_lens.artifacts.answers import Answer, AnswerKey
from mmneuron_lens.artifacts.official_scores import OfficialScores
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.evaluation.accuracy import is_right, scored_by


def score_answers(
    answers: Sequence[Answer],
    samples_by_domain: Mapping[str, Sequence[Sample]],
    corpora: Mapping[str, str],
    judge: metrics.LingoJudge | None = None,
) -> OfficialScores:
    """Every answer's score: the official one of its domain's corpus, or `is_right` where the domain has none.

    - corpora: the corpus's name by domain, as `metrics.score` knows it.
    - judge: without it LingoQA is scored by `is_right`, and a note says so.
    """
    values: dict[AnswerKey, float] = {}
    names: dict[str, str] = {}
    notes: list[str] = []
    groups: dict[tuple[str, ...], list[Answer]] = {}
    for one in answers:
        groups.setdefault((one.domain, one.module, one.condition, one.neurons_of), []).append(one)
    for (domain, *_), some in groups.items():
        corpus = corpora.get(domain, "")
        if not corpus or (corpus == "LingoQA" and judge is None):
            if corpus and domain not in names:
                notes.append(f"{corpus} was not scored by Lingo-Judge, whose weights were not given (--judge).")
            names |= scored_by(some)
            values |= {one.key: float(is_right(one)) for one in some}
            continue
        parameters: dict[str, Any] = {"judge": judge} if corpus == "LingoQA" else {}
        said = {one.id: one.answer for one in some}
        samples = [sample for sample in samples_by_domain[domain] if sample.id in said]
        scored = metrics.score(corpus, samples, said, **parameters)
        mode = scored.parameters.get("mode")
        names[domain] = f"{scored.metric} (mode {mode})" if mode else scored.metric
        keys = {one.id: one.key for one in some}
        values |= {keys[name]: float(value) for name, value in zip(scored.ids, scored.scores, strict=True)}
        notes += [f"{corpus}: {reason}" for reason in scored.skipped if f"{corpus}: {reason}" not in notes]
    return OfficialScores(values, names, tuple(notes))
