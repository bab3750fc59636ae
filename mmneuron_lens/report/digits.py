"""Digits: numbers of very different sizes, and their intervals, as people read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy


def in_digits(value: float | None) -> str:
    """A number in two significant digits, without an exponent: −0.00034; a dash for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    text = numpy.format_float_positional(value, precision=2, fractional=False, trim="-")
    return text.replace("-", "−")


def between(row: Mapping[str, Any], name: str, shown: Callable[[float], str] = in_digits) -> str:
    """A number with its interval, `name`, `name_low` and `name_high` of a row: "−0.031 [−0.05, −0.012]".

    - shown: how a number is written.
    """
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return shown(value) if low is None or high is None else f"{shown(value)} [{shown(low)}, {shown(high)}]"
