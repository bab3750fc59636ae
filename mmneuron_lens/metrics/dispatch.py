"""A corpus's name to its official score."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics import anls, intervals, lingo_judge, pmc_vqa, rsvqa, vqav2
from mmneuron_lens.metrics.intervals import estimate, mean_of_kinds
from mmneuron_lens.metrics.measured import Metric, MetricError
from mmneuron_lens.metrics.scores import Scores

METRICS: dict[str, Metric] = {
    "VQAv2": vqav2.METRIC,
    "PMC-VQA": pmc_vqa.METRIC,
    "DocVQA": anls.METRIC,
    "LingoQA": lingo_judge.METRIC,
    "RSVQA": rsvqa.METRIC,
}
"""The metric of each corpus; `score` reads names regardless of case and marks, and RSVQA-HR and -LR as RSVQA."""


def score(
    corpus: str,
    samples: Iterable[Sample],
    answers: Mapping[str, str],
    *,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Scores:
    """The corpus's official score of answers, with intervals.

    - corpus: one of `METRICS`, in any writing.
    - samples: what was asked.
    - answers: texts by sample id. A sample without an answer, without a usable reference or with a repeated id, and an
      answer of no sample, are named in `skipped`.
    - seed: of the intervals' resamples.
    - facts: the caller's part of the provenance, JSON values.
    - parameters: of VQAv2 mode ("official" or "evalai"), of PMC-VQA mode ("letter" or "official"), of DocVQA tau and
      boundary, of LingoQA judge, of RSVQA range_numbers.

    Raises `MetricError` for an unknown corpus or parameter, or when nothing is left to score.
    """
    name = _known(corpus)
    metric = METRICS[name]
    parameters = _complete(name, metric, parameters)
    pairs, skipped = _paired(metric, samples, answers)
    if not pairs:
        first = f" The first: {skipped[0]}" if skipped else ""
        raise MetricError(f"{corpus}: not one answer can be scored, {len(skipped)} skipped.{first}")
    measured = metric.measure(pairs, **parameters)
    kinds: dict[str, list[float]] = {}
    for (sample, _), value in zip(pairs, measured.scores, strict=True):
        kinds.setdefault(sample.kind, []).append(value)
    extra = {share: estimate(column, seed) for share, column in measured.shares.items()}
    if measured.mean_of_kinds:
        extra[measured.mean_of_kinds] = mean_of_kinds(list(kinds.values()), seed)
    return Scores(
        corpus=corpus,
        metric=metric.name,
        ids=tuple(sample.id for sample, _ in pairs),
        kinds=tuple(sample.kind for sample, _ in pairs),
        scores=tuple(measured.scores),
        overall=estimate(measured.scores, seed),
        by_kind={kind: estimate(scores, seed) for kind, scores in sorted(kinds.items()) if kind},
        extra=extra,
        details=measured.details,
        skipped=tuple(skipped),
        parameters={
            **{key: getattr(value, "name", value) for key, value in parameters.items()},
            "interval": "percentile bootstrap over questions",
            "confidence": intervals.CONFIDENCE,
            "resamples": intervals.RESAMPLES,
            "seed": seed,
        },
        provenance=provenance(**(facts or {})),
    )


def _known(corpus: str) -> str:
    plain = _plain(corpus)
    plain = "rsvqa" if plain in ("rsvqahr", "rsvqalr") else plain
    for name in METRICS:
        if plain == _plain(name):
            return name
    raise MetricError(f"no official score is known for corpus {corpus!r}; choose from {', '.join(METRICS)}.")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _complete(name: str, metric: Metric, given: dict[str, Any]) -> dict[str, Any]:
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(metric.measure).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for key in given:
        if key not in known:
            raise MetricError(f"{name} has no parameter {key!r}; choose from {', '.join(known)}.")
    return known | given


def _paired(
    metric: Metric, samples: Iterable[Sample], answers: Mapping[str, str]
) -> tuple[list[tuple[Sample, str]], list[str]]:
    pairs, skipped, seen = [], [], set()
    for sample in samples:
        if sample.id in seen:
            skipped.append(f"sample {sample.id!r} stands there twice; the first is scored.")
            continue
        seen.add(sample.id)
        if reason := metric.refuse(sample):
            skipped.append(f"sample {sample.id!r} {reason}")
        elif sample.id not in answers:
            skipped.append(f"sample {sample.id!r} has no answer; ask it, or leave it out.")
        elif not isinstance(answers[sample.id], str):
            skipped.append(f"sample {sample.id!r} has the answer {answers[sample.id]!r}, not a text.")
        else:
            pairs.append((sample, answers[sample.id]))
    skipped += [f"answer {key!r} belongs to no sample; score it with its corpus." for key in answers if key not in seen]
    return pairs, skipped
