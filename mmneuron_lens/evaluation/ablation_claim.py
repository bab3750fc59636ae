"""The claim about what happens without neurons: the hidden state moves much, accuracy little.

The interval resamples questions.
"""

from __future__ import annotations

import numpy

from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM
from mmneuron_lens.evaluation.accuracy import right_by_condition
from mmneuron_lens.evaluation.findings import Evidence, Finding, interval_of, not_run, verdict_of

MUCH = 5.0
"""Per cent of the norm: the paper says "large" of 8 to 50 % (all modules off, Table 3); here, anything above this."""


def much_and_little(one: Evidence) -> Finding:
    """Claim 6: deviation in per cent, all modules off, mean over domains: above `MUCH`, and more than accuracy changes.

    The change is that of a domain's accuracy in points, whatever its sign; questions are resampled in each domain.
    """
    if not one.deviations or not one.answers:
        return not_run(one, "no neurons were switched off")
    right = right_by_condition(one.answers, one.scoring)
    moved, changed, drawn = [], [], []
    generator = numpy.random.default_rng(0)
    for some in one.deviations:
        deviation = dict(zip(some.samples, (100 * some.of(ALL, DOMAIN)).tolist(), strict=True))
        before, after = right["None", NONE, "", some.domain], right[ALL, DOMAIN, some.domain, some.domain]
        asked = [name for name in before if name in after]
        difference = 100 * numpy.array([float(after[name]) - float(before[name]) for name in asked])
        values = numpy.array(list(deviation.values()))
        moved.append(float(values.mean()))
        changed.append(abs(float(difference.mean())))
        places = generator.integers(0, len(values), (1000, len(values)))
        drawn.append(values[places].mean(1))
    low, high = interval_of(list(numpy.mean(drawn, axis=0)))
    value, change = float(numpy.mean(moved)), float(numpy.mean(changed))
    random = [some.of(ALL, RANDOM).mean() for some in one.deviations if (ALL, f"{RANDOM} 1") in some.conditions]
    note = f"Accuracy changes by {change:.1f} points. Taken to be much: above {MUCH:g} %, and more than the points."
    note += f" As many random neurons move the state by {100 * float(numpy.mean(random)):.1f} %." if random else ""
    statistic = "deviation of the last hidden state, all modules off, mean over domains"
    verdict = verdict_of(low, high, lambda number: number > max(MUCH, change))
    return Finding(one.model, statistic, value, low, high, verdict, "%", note)
