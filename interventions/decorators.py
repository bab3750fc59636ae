"""Decorators: what makes a function of a site's value into an intervention."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from interventions.errors import InvalidType
from interventions.graph import Intervention, Mode
from interventions.narrowing import checked_sites
from interventions.overs import Over, checked_over


def reads(*sites: str, over: Over, **bindings: object) -> Callable[[Callable[..., Any]], Intervention]:
    """Make a function of a site's value into a read: it returns a tensor, or a dict of tensors.

    - sites: names or globs of the sites where it reads, until `at` says otherwise.
    - over: how the batches' results become one. `"sum"` adds them, `"max"` keeps the larger, element by element.
      `"mean"` expects `(sum, weight)` from the function and divides once at the end. `"list"` keeps a Python list with
      one item per batch. Or an associative pure function `fold(left, right)` of two results at one layer, the earlier
      one first, that returns such a result, as those of `interventions.folds`.
    - bindings: arguments of the function that are the same for everyone, as in `Intervention.bind`.

    Raises:

    - `InvalidValue`: for another `over`.
    - `UnknownName`: for a site that does not exist.
    - `InvalidType`: for no site, a function with `*arguments` or `**keywords`, or `over` that is no function of two.
    """
    return _decorator("reads", sites, over, bindings)


def writes(*sites: str, **bindings: object) -> Callable[[Callable[..., Any]], Intervention]:
    """Make a function of a site's value into a write: it returns a new value of the same shape.

    - sites: names or globs of the sites where it writes, until `at` says otherwise.
    - bindings: arguments of the function that are the same for everyone, as in `Intervention.bind`.

    Raises:

    - `UnknownName`: for a site that does not exist.
    - `InvalidType`: for no site, or a function with `*arguments` or `**keywords`.
    """
    return _decorator("writes", sites, None, bindings)


def rewires(*sites: str, **bindings: object) -> Callable[[Callable[..., Any]], Intervention]:
    """Make a function of `(value, source)` into a rewire: a write that is also given another input's value.

    `source` is the value which the same site and layer had on a paired source batch
    (`lens.run(graph, batches, sources=...)`), of the same shape.

    - sites: names or globs of the sites where it writes, until `at` says otherwise.
    - bindings: arguments of the function that are the same for everyone, as in `Intervention.bind`.

    Raises:

    - `UnknownName`: for a site that does not exist.
    - `InvalidType`: for no site, or a function with `*arguments` or `**keywords`.
    """
    return _decorator("rewires", sites, None, bindings)


def _decorator(
    mode: Mode, sites: tuple[str, ...], over: Over | None, bindings: Mapping[str, object]
) -> Callable[[Callable[..., Any]], Intervention]:
    if not sites or callable(sites[0]):
        raise InvalidType(
            f'@{mode} names at least one site, e.g. @{mode}("llm.mlp.act"{", over=..." if over else ""}).'
        )
    if mode == "reads":
        checked_over(over, "@reads")
    checked = checked_sites(sites)

    def decorate(function: Callable[..., Any]) -> Intervention:
        if not inspect.isfunction(function):
            raise InvalidType(f"@{mode} decorates a function, not {type(function).__name__}: write one with def.")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InvalidType(f"{function.__name__}: *{parameter.name} cannot be bound; name each argument.")
        return Intervention(function, mode, checked, over).bind(**bindings)

    return decorate
