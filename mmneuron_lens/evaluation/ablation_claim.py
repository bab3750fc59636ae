"""The claim about what happens without neurons: the hidden state moves much, accuracy little.

The interval resamples questions.
"""

from __future__ import annotations

from typing import Any

import numpy

from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM
from mmneuron_lens.artifacts.digits import number, percent
from mmneuron_lens.evaluation.accuracy import Right, right_by_condition
from mmneuron_lens.evaluation.findings import RESAMPLES, Evidence, Finding, few, interval_of, not_run, verdict_of

MUCH = 5.0
"""Per cent of the norm: the paper says "large" of 8 to 50 % (all modules off, Table 3); here, anything above this."""

Numbers = numpy.ndarray[Any, Any]


def much_and_little(one: Evidence, resamples: int = RESAMPLES, seed: int = 0) -> Finding:
    """Claim 6: deviation in per cent, all modules off, mean over domains: above `MUCH`, and more than accuracy changes.

    The change is that of a domain's accuracy in points, whatever its sign. Questions are resampled in each domain, for
    the deviation and for the change; the verdict is that of their margin, the deviation less the larger of both bounds.
    Domains that were not asked under both conditions have no part in it.
    """
    if not one.deviations or not one.answers:
        return not_run(one, "no neurons were switched off")
    right = right_by_condition(one.answers, one.scoring)
    both = [some for some in one.deviations if (ALL, DOMAIN) in some.conditions and len(_changes(right, some.domain))]
    if not both:
        return not_run(one, "no domain was asked and compared with its neurons off in all modules")
    moved = [100 * some.of(ALL, DOMAIN).numpy() for some in both]
    changes = [_changes(right, some.domain) for some in both]
    value, change = _means(moved, changes)
    generator = numpy.random.default_rng(seed)
    draws = 0 if few(list(map(len, (*moved, *changes)))) else resamples
    drawn = [_means(_again(moved, generator), _again(changes, generator)) for _ in range(draws)]
    low, high = interval_of([deviation for deviation, _ in drawn])
    margin = interval_of([deviation - max(MUCH, other) for deviation, other in drawn])
    random = [some.of(ALL, RANDOM).mean() for some in both if (ALL, f"{RANDOM} 1") in some.conditions]
    note = f"Accuracy changes by {number(change)} points. Taken to be much: above {MUCH:g} %, and more than the points."
    note += f" As many random neurons move the state by {percent(float(numpy.mean(random)))}." if random else ""
    statistic = "deviation of the last hidden state, all modules off, mean over domains"
    verdict = verdict_of(value - max(MUCH, change), *margin, lambda number: number > 0)
    return Finding(one.model, statistic, value, low, high, verdict, "%", note)


def _changes(right: Right, domain: str) -> Numbers:
    """Points that each question of a domain gains with the domain's neurons off in all modules; [question]."""
    before, after = right.get(("None", NONE, "", domain), {}), right.get((ALL, DOMAIN, domain, domain), {})
    return numpy.array([100 * (after[name] - before[name]) for name in before if name in after], float)


def _means(moved: list[Numbers], changes: list[Numbers]) -> tuple[float, float]:
    """Mean over domains of the deviation, and of the size of the change of accuracy."""
    return float(numpy.mean([some.mean() for some in moved])), float(numpy.mean([abs(some.mean()) for some in changes]))


def _again(values: list[Numbers], generator: numpy.random.Generator) -> list[Numbers]:
    return [some[generator.integers(0, len(some), len(some))] for some in values]
