"""What a page says first: what was found, in sentences made from the artifacts, and what these allow to conclude."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmneuron_lens.artifacts.answers import ALL
from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.artifacts.digits import interval, number
from mmneuron_lens.evaluation.accuracy import against_random
from mmneuron_lens.evaluation.beyond_random import beyond_random, fraction_of, with_interval
from mmneuron_lens.evaluation.comparison_claims import matters
from mmneuron_lens.evaluation.findings import Claim, Finding, verdict_of
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.report.claims_table import measured
from mmneuron_lens.report.tables import domain_name, listed

Said = tuple[str, str]
"""A finding in a few words, and in sentences with its numbers."""


def findings_of(runs: Sequence[ModelRun]) -> tuple[Said, ...]:
    """What the run can say of each question; nothing on what was not run."""
    said = (specific(runs), reproduced(runs), matter(runs), accuracy(runs))
    return tuple(one for one in said if one is not None)


def verdicts(claims: Sequence[Claim]) -> tuple[Said, ...]:
    """How many of the paper's statements hold, model by model."""
    models = dict.fromkeys(finding.model for claim in claims for finding in claim.findings)
    said = []
    for model in models:
        found = [(claim.number, one.verdict) for claim in claims for one in claim.findings if one.model == model]
        numbers = {verdict: [number for number, said in found if said == verdict] for _, verdict in ORDER}
        parts = [f"{words} {', '.join(numbers[verdict])}" for words, verdict in ORDER if numbers[verdict]]
        count = len(numbers["holds"])
        short = f"{count} of the paper’s {len(found)} statements {'holds' if count == 1 else 'hold'} for {model}."
        said.append((short, f"{'; '.join(parts)}.".capitalize()))
    return tuple(said)


ORDER = (
    ("hold:", "holds"),
    ("do not hold:", "does not hold"),
    ("not decided:", "not decided"),
    ("cannot fail here:", "cannot fail here"),
    ("not run:", "not run"),
)


def specific(runs: Sequence[ModelRun]) -> Said | None:
    """How much more often selected neurons are active in their domain, on images that did not select them."""
    found = []
    for run in runs:
        odds = run.effects.effect()["held_out"] if run.effects is not None and not run.uncontrolled else None
        if odds is None or odds["value"] is None:
            continue
        low, high = (None if one is None else math.exp(one) for one in (odds["low"], odds["high"]))
        verdict = verdict_of(math.exp(odds["value"]), low, high, lambda odds: odds > 1)
        found.append(Finding(run.model, "", math.exp(odds["value"]), low, high, verdict))
    if not found:
        return None
    told = listed(f"{measured(one)} in {one.model}" for one in found)
    short = "The selected neurons are specific to domains, on other images too."
    if not _all_hold(found):
        short = "Not in every model are the selected neurons specific to domains on other images."
    return short, (
        "Selected on one half of the images and measured on the other, their odds of being active in their own domain "
        f"are a multiple of those in the other domains, by the median: {told}. {_above(found)}"
    )


def _above(found: Sequence[Finding]) -> str:
    if _all_hold(found):
        return (
            "Every interval lies above 1, so domains and not chance explain the selection. Whether the answers need "
            "these neurons is another question."
        )
    count = sum(one.verdict == "holds" for one in found)
    return f"The interval lies above 1 in {count} of {len(found)} models; in the others chance would do as much."


def reproduced(runs: Sequence[ModelRun]) -> Said | None:
    """How far two halves of the images select the same neurons."""
    found = [
        (run.model, value)
        for run in runs
        if run.overlap is not None and not run.uncontrolled and not math.isnan(value := run.overlap.mean(None))
    ]
    if not found:
        return None
    fraction = runs[0].selection.parameters["fraction"]
    told = listed(f"{model}: {number(value, 2)}" for model, value in found)
    chance = fraction / (2 - fraction)
    short = "Other images select mostly the same neurons."
    if min(value for _, value in found) < 0.5:
        short = "Which neurons are selected depends on the images."
    return short, (
        f"Of the neurons that either of two halves of the images selects, this share is selected by both (Jaccard): "
        f"{told}. 1 would be the very same neurons, {number(chance, 1)} is chance."
    )


def matter(runs: Sequence[ModelRun]) -> Said | None:
    """Whether switching the selected neurons off costs more of the right answers than as many random ones."""
    found, where = [], list[str]()
    asked = there = 0
    for run in runs:
        if run.comparison is None:
            continue
        one = run.comparison
        method, fraction = _method(run, one), fraction_of(one)
        domains = [domain for domain in one.domains if one.asked(domain)]
        groups = [beyond_random(one, one.place(method, domain, fraction), domain) for domain in domains]
        mean = with_interval("value", *groups)
        if mean["value"] is None:
            continue
        value, low, high = mean["value"], mean["value_low"], mean["value_high"]
        found.append(
            Finding(
                run.model, method, value, low, high, verdict_of(value, low, high, lambda change: change < 0), "nats"
            )
        )
        asked += len(domains)
        held = [domain for domain in domains if matters(one, method, domain, fraction).verdict == "holds"]
        there += len(held)
        where += [f"{listed(map(domain_name, held))} of {run.model}"] if held else []
    if not found:
        return None
    told = listed(f"{measured(one)} in {one.model}" for one in found)
    count = sum(one.verdict == "holds" for one in found)
    short = f"That they matter to the answers is shown in {count} of {len(found)} models."
    if count == len(found):
        short = "They matter to the answers more than as many random neurons."
    elif not count:
        places = f"but in {there} of {asked} domains" if there else "in any domain"
        short = f"They are not shown to matter to the answers more than as many random neurons, {places}."
    places = f"in none of the {asked} domains"
    if where:
        places = f"in {listed(where)}"
    return short, (
        "Switched off, they change the log-probability of the right answer, beyond what as many random neurons do, by "
        f"{told}, over all domains; below 0 is worse. Domain by domain the whole interval is below 0 {places}. An "
        "interval that holds 0 is compatible with no effect, and with one as large as its ends."
    )


def _method(run: ModelRun, one: NeuronComparison) -> str:
    """The selection's own method where it was compared, the first one otherwise."""
    own = run.selection.parameters.get("method")
    return own if own in one.methods else one.methods[0]


def accuracy(runs: Sequence[ModelRun]) -> Said | None:
    """Whether generated answers are wrong more often with a domain's neurons off than with random ones."""
    said, lost = list[str](), 0
    for run in runs:
        rows = [
            row for row in against_random(run.answers, run.scoring) if row["module"] == ALL and row["low"] is not None
        ]
        if not rows:
            continue
        worse = [row for row in rows if row["high"] < 0]
        told = listed(
            f"{domain_name(row['domain'])} ({interval(row['difference'], row['low'], row['high'])} points)"
            for row in worse or [min(rows, key=lambda row: row["difference"])]
        )
        places = "in" if worse else f"in none of {len(rows)} domains, the lowest is"
        same = all(row["difference"] == row["low"] == row["high"] == 0 for row in rows)
        said.append(f"{run.model}: {f'no difference in any of {len(rows)} domains' if same else f'{places} {told}'}")
        lost += len(worse)
    if not said:
        return None
    short = f"Accuracy falls by more than with as many random neurons off in {lost} cases of model and domain."
    if not lost:
        short = "Accuracy does not fall by more than with as many random neurons off."
    return short, (
        "A domain’s neurons off in all modules, less as many random ones off, where the whole interval is below 0. "
        f"{'; '.join(said)}."
    )


def _all_hold(found: Sequence[Finding]) -> bool:
    return Counter(one.verdict for one in found)["holds"] == len(found)
