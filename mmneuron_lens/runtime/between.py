"""Between: the points of the line that integrated gradients are taken at, and the graphs that this can be done for."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast, get_args

from interventions.errors import InvalidType, InvalidValue
from interventions.sites import unknown
from mmneuron_lens.runtime.needs import comes_before
from mmneuron_lens.wire.between import START
from mmneuron_lens.wire.types import SitePlan

Rule: TypeAlias = Literal["midpoint", "right"]


def points(steps: int, rule: Rule) -> list[float]:
    """Shares of the way from the baseline to the batch.

    Raises `InvalidType` for steps that are no whole number, `InvalidValue` for none, and for a rule that is not there.
    """
    if not isinstance(cast(object, steps), int) or isinstance(steps, bool):
        raise InvalidType(f"steps is a whole number, not {steps!r}.")
    if steps < 1:
        raise InvalidValue(f"steps is {steps}; a line has at least 1 point.")
    if rule not in get_args(Rule):
        raise InvalidValue(unknown("rule", rule, get_args(Rule)))
    back = 0.5 if rule == "midpoint" else 0.0
    return [(step - back) / steps for step in range(1, steps + 1)]


def refuse_elsewhere(plans: list[SitePlan]) -> None:
    """Raise `InvalidValue` for a graph whose gradients do not lie behind the line."""
    given = [(act["name"], plan["site"]) for plan in plans for act in plan["acts"] if act["gradients"]]
    if not given:
        raise InvalidValue(
            "run_between averages gradients, and this graph binds none: write gradient=gradient(target)."
        )
    for name, site in given:
        if site != START and comes_before(site, START):
            raise InvalidValue(
                f"{name}: {site} comes before {START}, where the line from the baseline lies; read a site of the "
                "language model."
            )
