"""Proved: what `lens.check` could prove of a graph, and what it could only try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """What `lens.check` found; whatever does not fit is raised instead.

    - proved: interventions at sites, which fit for every value of these shapes
    - tried: those that shapes alone cannot run, with the reason: they were run on random values, which is no proof;
      and those whose annotations cannot be read
    """

    proved: tuple[str, ...]
    tried: Mapping[str, str]

    def __repr__(self) -> str:
        lines = ["Check", *(f"  proved on shapes: {name}" for name in self.proved)]
        return "\n".join([*lines, *(f"  not proved: {name}: {why}" for name, why in self.tried.items())])
