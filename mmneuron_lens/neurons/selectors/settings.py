"""Settings: a method's parameters as they are written in a command, alpha=2."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from interventions.errors import InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.neurons.selectors.registry import Selector


def settings_of(method: Selector, written: Sequence[str]) -> dict[str, Any]:
    """Parameters from texts, each NAME=VALUE, of the type that the method's own value has.

    Raises `UnknownName` for a parameter that the method does not have, `InvalidValue` for another type or form.
    """
    found: dict[str, Any] = {}
    for text in written:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InvalidValue(f"--parameter {text!r} sets nothing; write NAME=VALUE, such as --parameter seed=1.")
        if name not in method.defaults:
            raise UnknownName(unknown(f"parameter of {method.name}", name, list(method.defaults) or ["no parameter"]))
        found[name] = _as(method.defaults[name], name, value.strip())
    return found


def _as(usual: Any, name: str, text: str) -> Any:
    if isinstance(usual, str):
        return text
    try:
        value = json.loads(text.lower() if isinstance(usual, bool) else text)
    except ValueError:
        value = text
    if isinstance(usual, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if usual is not None and type(value) is not type(usual):
        raise InvalidValue(f"--parameter {name}={text} is no {type(usual).__name__}; its usual value is {usual!r}.")
    return value
