"""Accuracy: answers to accuracies and paired intervals. Pure; needs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.answers import DOMAIN, NONE, RANDOM, Answer, AnswerKey
from mmneuron_lens.metrics.chosen_option import letters_of, parse
from mmneuron_lens.metrics.intervals import mean_interval
from mmneuron_lens.metrics.normal_form import normal_form

Match = Callable[[Answer], bool]
"""Whether an answer is right."""

Right = dict[tuple[str, str, str, str], dict[str, float]]
"""By (module, condition, domain of the neurons, domain of the questions): each question's score in [0, 1], by id."""

Scoring = Match | Mapping[AnswerKey, float]
"""How answers are scored: by a function, or by scores in [0, 1] (official ones); an answer without one is left out."""


OPTION = "accuracy of the option that the answer names, by letter or text"
OPEN = "accuracy, equal to an accepted answer but for case, punctuation, articles and white space"


def is_right(one: Answer) -> bool:
    """Whether the option that it names is accepted (`chosen_option.parse`; a guess is not), where the question has
    options; elsewhere whether it equals an accepted answer in `normal_form`. An option is accepted by letter or text.
    """
    if one.options:
        named, letters = parse(one.answer, one.options), letters_of(one.options)
        accepted = {text if text in letters else parse(text, one.options).letter for text in one.answers}
        return named.is_parsed and named.letter in accepted
    return normal_form(one.answer) in {normal_form(accepted) for accepted in one.answers}


def scored_by(answers: Sequence[Answer]) -> dict[str, str]:
    """How `is_right` scores the answers to each domain's questions, in words."""
    found: dict[str, set[str]] = {}
    for one in answers:
        found.setdefault(one.domain, set()).add(OPTION if one.options else OPEN)
    return {
        domain: "; without options: ".join(name for name in (OPTION, OPEN) if name in used)
        for domain, used in found.items()
    }


def scores(answers: Sequence[Answer], match: Scoring = is_right, seed: int = 0) -> list[dict[str, Any]]:
    """The ablation table: model, module, condition, domain, accuracy, difference, low, high, questions.

    Accuracy is in per cent; difference, low and high are accuracy(condition) - accuracy("none") in percentage points
    with its interval, see `metrics.intervals`. Questions asked with another domain's neurons off are in `cross_scores`.
    """
    rows: list[dict[str, Any]] = []
    for model, right in _by_model(answers, match):
        for (module, condition, neurons_of, domain), correct in right.items():
            if neurons_of not in ("", domain):
                continue
            names = {"model": model, "module": module, "condition": condition, "domain": domain}
            rows.append(names | _compared(correct, right["None", NONE, "", domain], condition == NONE, seed))
    return rows


def against_random(answers: Sequence[Answer], match: Scoring = is_right, seed: int = 0) -> list[dict[str, Any]]:
    """How much more the domain's neurons cost than random ones.

    Columns: model, module, domain, difference, low, high, questions. The difference is accuracy("domain") minus the
    mean accuracy of the random draws, in percentage points, paired by question: below zero, with its whole interval,
    where the domain's own neurons matter more than chance.
    """
    rows: list[dict[str, Any]] = []
    for model, right in _by_model(answers, match):
        for module, condition, neurons_of, domain in list(right):
            draws = [
                correct
                for (place, name, other, asked), correct in right.items()
                if (place, other, asked) == (module, domain, domain) and name.startswith(f"{RANDOM} ")
            ]
            if condition != DOMAIN or neurons_of != domain or not draws:
                continue
            own = right[module, condition, neurons_of, domain]
            mean = numpy.mean([[draw[question] for question in own] for draw in draws], axis=0)
            rows.append(
                {"model": model, "module": module, "domain": domain}
                | _difference(numpy.array([*own.values()], float), mean, seed)
                | {"questions": len(own)}
            )
    return rows


def cross_scores(answers: Sequence[Answer], match: Scoring = is_right, seed: int = 0) -> list[dict[str, Any]]:
    """Neurons of one domain off, questions of another: as `scores`, with a column neurons_of; own domains included."""
    rows: list[dict[str, Any]] = []
    for model, right in _by_model(answers, match):
        for (module, condition, neurons_of, domain), correct in right.items():
            if condition == DOMAIN:
                names = {"model": model, "module": module, "neurons_of": neurons_of, "domain": domain}
                rows.append(names | _compared(correct, right["None", NONE, "", domain], False, seed))
    return rows


def right_by_condition(answers: Sequence[Answer], match: Scoring = is_right) -> Right:
    """The score of each answer of one model; `ValueError` for answers of several models."""
    found = _by_model(answers, match)
    if len(found) != 1:
        raise InvalidValue(f"answers of one model wanted, these are of {[model for model, _ in found]}.")
    return found[0][1]


def _by_model(answers: Sequence[Answer], match: Scoring) -> list[tuple[str, Right]]:
    found: dict[str, Right] = {}
    for one in answers:
        key = one.module, one.condition, one.neurons_of, one.domain
        score = match(one) if callable(match) else match.get(one.key)
        if score is not None:
            found.setdefault(one.model, {}).setdefault(key, {})[one.id] = float(score)
    return list(found.items())


def _compared(correct: dict[str, float], baseline: dict[str, float], is_baseline: bool, seed: int) -> dict[str, Any]:
    if correct.keys() != baseline.keys():
        raise InvalidValue('a condition and "none" have answers to different questions; answer all under each.')
    first = numpy.array([*correct.values()], float)
    second = numpy.array([baseline[question] for question in correct], float)
    row = {"accuracy": 100 * float(first.mean())}
    row |= {"difference": 0.0, "low": None, "high": None} if is_baseline else _difference(first, second, seed)
    return row | {"questions": len(first)}


def _difference(first: numpy.ndarray[Any, Any], second: numpy.ndarray[Any, Any], seed: int) -> dict[str, float | None]:
    low, high = mean_interval(100 * first - 100 * second, seed=seed)
    return {"difference": 100 * float((first - second).mean()), "low": low, "high": high}
