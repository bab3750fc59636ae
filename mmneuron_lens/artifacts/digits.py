"""Digits: how every number is written for people, alone, in a column, or with its interval. Files keep full precision.

A number that is not zero is never written as zero, zero is `0`, the minus is U+2212, thousands have commas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MINUS, NONE = "−", "–"

DIGITS = 3
"""Significant digits of a number that stands alone."""

UNSURE = 2
"""Significant digits of half an interval, which decide the decimals of its number and its ends."""

LEAST = -4
"""The power of ten below which a number is written with it: 3.4×10⁻⁵."""

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = DIGITS, decimals: int | None = None) -> str:
    """A number as people read it: 12,345; 0.0312; −1.40; 3.40×10⁻⁵; a dash for none and for NaN.

    - digits: significant ones of a fraction. Digits before the point are never rounded away.
    - decimals: so many instead, as in a column; what would round to zero there has one significant digit.
    """
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if isinstance(value, int):
        return _signed(f"{value:,}")
    if value == 0:
        return "0"
    if decimals is None:
        power = _power(value, digits)
        if power < LEAST:
            return f"{_scaled(value, power, digits - 1)}{times(power)}"
        decimals = max(0, digits - 1 - power)
    text = f"{value:,.{decimals}f}"
    return number(value, 1) if _is_zero(text) else _signed(text)


def percent(share: float | None, decimals: int | None = None) -> str:
    """A share as per cent: 0.123 is "12.3 %"."""
    text = number(None if share is None else 100 * share, decimals=decimals)
    return text if text == NONE else f"{text} %"


def interval(value: float | None, low: float | None = None, high: float | None = None, factor: float = 1) -> str:
    """A number with its interval, all in the decimals that its width allows: "−0.031 [−0.050, −0.012]".

    - low, high: the ends; without both the number stands alone.
    - factor: what all three are multiplied by.

    Where all three are tiny they share one power of ten: "(−1.4 [−5.0, 2.1])×10⁻⁶". An end that would round to zero has
    a digit of its own, so that what lies on one side of zero is seen to.
    """
    parts = [None if one is None else factor * one for one in (value, low, high)]
    if any(one is None or not math.isfinite(one) for one in parts):
        return number(parts[0])
    shown = [float(one) for one in parts if one is not None]
    half = (shown[2] - shown[1]) / 2
    wide = _power(half, UNSURE) - (UNSURE - 1) if half > 0 else _power(shown[0], DIGITS) - (DIGITS - 1)
    largest = max(_power(one, UNSURE) for one in shown)
    power = largest if any(shown) and largest < LEAST else 0
    decimals = min(max(0, power - wide), _MOST)
    told = [_within(one, power, decimals) for one in shown]
    text = f"{told[0]} [{told[1]}, {told[2]}]"
    return f"({text}){times(power)}" if power else text


def between(row: Mapping[str, Any], name: str, factor: float = 1) -> str:
    """A number of a row with its interval: `name`, `name_low` and `name_high`; see `interval`."""
    return interval(*(row.get(f"{name}{end}") for end in ("", "_low", "_high")), factor=factor)


_MOST = 12
"""Decimals at most, where an interval is narrower than floats are exact."""


def times(power: int) -> str:
    """A power of ten behind a number: "×10⁻⁶"."""
    return f"×10{str(power).translate(_RAISED)}"


def _within(value: float, power: int, decimals: int) -> str:
    """A number of an interval: in units of ten to a power, with these decimals, or with one digit if that is zero."""
    if value == 0:
        return "0"
    text = _scaled(value, power, decimals)
    if not _is_zero(text):
        return text
    own = _power(value, 1)
    if own - power >= LEAST - 1:
        return _scaled(value, power, power - own)
    return f"{_scaled(value, own, 0)}{times(own - power)}"


def _scaled(value: float, power: int, decimals: int) -> str:
    """The value over ten to a power, exactly rounded: the digits are those of the value itself."""
    return _signed(f"{Decimal(value).scaleb(-power):,.{decimals}f}")


def _power(value: float, digits: int) -> int:
    """The power of ten of a number's first digit, once it is rounded to so many."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2]) if value else _NO_POWER


_NO_POWER = -999


def _is_zero(text: str) -> bool:
    return not any(one in "123456789" for one in text)


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
