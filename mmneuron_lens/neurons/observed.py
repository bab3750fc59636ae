"""Observed: everything that was measured of one model's neurons, domain by domain: what selectors are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.moments import Moments


@dataclass(frozen=True, eq=False, repr=False)
class Observed:
    """Artifacts of one model, one a domain in each tuple, all in the same order of domains.

    - counts: of two or more domains.
    - moments, attributions: of the same domains, or empty where none were taken.

    Raises `InvalidValue` where a tuple is of other domains than the counts.
    """

    counts: tuple[Counts, ...]
    moments: tuple[Moments, ...] = ()
    attributions: tuple[Attributions, ...] = ()

    def __post_init__(self) -> None:
        for name, found in (("moments", self.moments), ("attributions", self.attributions)):
            others = tuple(one.domain for one in found)
            if found and others != self.domains:
                raise InvalidValue(f"{name} are of {others}, and the counts of {self.domains}; give both of the same.")

    @property
    def domains(self) -> tuple[str, ...]:
        """Of the counts, in their order."""
        return tuple(one.domain for one in self.counts)


def observed(
    counts: Sequence[Counts], moments: Sequence[Moments] = (), attributions: Sequence[Attributions] = ()
) -> Observed:
    """What was measured, each in the order of the counts' domains, whatever the order given.

    - counts: one a domain. moments, attributions: of the same domains, where they were taken.

    Raises `InvalidValue` as `Observed`.
    """
    domains = [one.domain for one in counts]
    for one in (*moments, *attributions):
        if one.domain not in domains:
            raise InvalidValue(f"{one.kind} of {one.domain} have no counts beside them; count it, or leave it out.")
    return Observed(
        tuple(counts),
        tuple(sorted(moments, key=lambda one: domains.index(one.domain))),
        tuple(sorted(attributions, key=lambda one: domains.index(one.domain))),
    )
