"""Claims about a comparison: whether a method's neurons of a domain matter more to its answers than random ones."""

from __future__ import annotations

from collections.abc import Sequence

from mmneuron_lens.artifacts.comparison import OFF, NeuronComparison
from mmneuron_lens.evaluation.beyond_random import beyond_random, fraction_of, measured, with_interval
from mmneuron_lens.evaluation.findings import Claim, Finding, verdict_of


def comparison_claims(
    comparisons: Sequence[NeuronComparison], fraction: float | None = None, seed: int = 0
) -> list[Claim]:
    """A claim per method and domain, with a finding per model: "holds" where the difference to as many random neurons,
    of the answer's log-probability, lies with its whole 95 % interval below 0, and so does the change itself. Where
    random neurons off make the answers likelier, neurons that do nothing do not matter more than these.

    - fraction: of each module's neurons; `fraction_of` each comparison unless given.
    """
    methods = dict.fromkeys(method for one in comparisons for method in one.methods)
    domains = dict.fromkeys(domain for one in comparisons for domain in one.domains)
    return [
        Claim(
            f"{method} {domain}",
            f"{method}’s neurons of {domain} matter more to its answers than as many random ones.",
            tuple(
                matters(one, method, domain, fraction or fraction_of(one), seed)
                for one in comparisons
                if method in one.methods and domain in one.domains
            ),
        )
        for method in methods
        for domain in domains
    ]


def matters(comparison: NeuronComparison, method: str, domain: str, fraction: float, seed: int = 0) -> Finding:
    """The finding of one method and domain at one fraction; see `comparison_claims`.

    Raises `UnknownName` for what was not compared.
    """
    place = comparison.place(method, domain, fraction, OFF)
    values = beyond_random(comparison, place, domain)
    count = sum(comparison.conditions[place].neurons.values())
    statistic = f"change of the answer's log-probability, {count} neurons ({100 * fraction:g} %), less that of random"
    if not len(values):
        return Finding(comparison.model, statistic, None, None, None, "not run", "nats", "there are no random draws")
    found = with_interval("value", values, seed=seed)
    value, low, high = (found[name] for name in ("value", "value_low", "value_high"))
    assert value is not None
    verdict = verdict_of(value, low, high, lambda number: number < 0)
    own = with_interval("value", measured(comparison, place, domain), seed=seed)["value_high"]
    if verdict == "holds" and (own is None or own >= 0):
        verdict = "not decided"
    return Finding(comparison.model, statistic, value, low, high, verdict, "nats", f"{len(values)} questions")
