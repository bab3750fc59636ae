"""How numbers are written for people: read back, they are what they were, as far as the digits that are shown."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mmneuron_lens
from mmneuron_lens.artifacts.digits import interval, number, percent
from mmneuron_lens.report.tables import shown

FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9),
    st.builds(lambda one, power: one * 10.0**power, st.integers(-999, 999), st.integers(-12, 6)),
)
RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
PARTS = re.compile(r"(−?)([\d,]+)(?:\.(\d+))?(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?")


def read(text: str) -> tuple[Decimal, Decimal]:
    """What a text says, and a unit of its last digit."""
    found = PARTS.fullmatch(text)
    assert found, text
    minus, whole, places, power = found.groups()
    raised = int(power.translate(RAISED)) if power else 0
    digits = whole.replace(",", "") + (places or "")
    unit = Decimal(1).scaleb(raised - len(places or ""))
    return Decimal(digits) * unit * (-1 if minus else 1), unit


def parts_of(text: str) -> list[tuple[Decimal, Decimal]]:
    """Number, low and high of an interval, each with a unit of its last digit."""
    shared = re.fullmatch(r"\((.*)\)×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    inner, power = (shared[1], int(shared[2].translate(RAISED))) if shared else (text, 0)
    found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", inner)
    assert found, text
    return [(value.scaleb(power), unit.scaleb(power)) for value, unit in map(read, found.groups())]


def refuse_wrong(value: float, told: Decimal, unit: Decimal) -> None:
    assert (told > 0) - (told < 0) == (value > 0) - (value < 0), "the sign, and zero for zero alone"
    assert abs(Decimal(value) - told) <= unit / 2


@given(FLOATS, st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_a_number_reads_back_within_its_last_digit(value, digits):
    refuse_wrong(value, *read(number(value, digits)))


@given(FLOATS, st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_a_number_of_a_column_is_zero_only_where_it_is(value, decimals):
    text = number(value, decimals=decimals)
    refuse_wrong(value, *read(text))
    assert shown(value, decimals=decimals) == text


@given(FLOATS, FLOATS, st.integers(0, 4) | st.none())
@settings(max_examples=300, deadline=None)
def test_larger_numbers_are_never_shown_smaller(one, other, decimals):
    low, high = sorted((one, other))
    assert read(number(low, decimals=decimals))[0] <= read(number(high, decimals=decimals))[0]


@given(FLOATS, FLOATS, FLOATS)
@settings(max_examples=400, deadline=None)
def test_an_interval_reads_back_and_shows_on_which_side_of_zero_it_lies(one, other, third):
    low, value, high = sorted((one, other, third))
    told = parts_of(interval(value, low, high))
    for exact, (said, unit) in zip((value, low, high), told, strict=True):
        refuse_wrong(exact, said, unit)
    assert told[1][0] <= told[0][0] <= told[2][0]
    if low < high:
        # Two digits of the half width at least: no end is further off than a fortieth of the interval.
        assume(high - low > 1e-9 * max(abs(low), abs(high)))
        assert all(unit <= Decimal(high - low) * Decimal("0.0501") or unit <= 1 for _, unit in told)


@given(FLOATS)
@settings(max_examples=100, deadline=None)
def test_one_sign_for_minus_and_no_exponent_of_a_program(value):
    for text in (number(value), percent(value), interval(value, value - 1, value + 1), shown(value)):
        assert not re.search(r"[-e]|−0(?:\.0*)?(?![\d.])", text), text


def test_numbers_as_they_are_written():
    told = {
        **{0.0: "0", 0.03125: "0.0312", -1.4142: "−1.41", 12345.6: "12,346", 0.999951: "1.00"},
        **{
            0.0009996: "0.00100",
            -0.0000014: "−1.40×10⁻⁶",
            0.00034: "0.000340",
            math.inf: "∞",
            12345: "12,345",
            -3: "−3",
        },
    }
    assert {value: number(value) for value in told} == told
    assert (number(None), number(math.nan), percent(None), interval(None)) == ("–",) * 4
    assert (percent(0.1234), percent(0.00026, 1), percent(1.0)) == ("12.3 %", "0.03 %", "100 %")
    assert (number(-0.04, decimals=1), number(83.0, decimals=1), number(0.0, decimals=1)) == ("−0.04", "83.0", "0")


def test_intervals_as_they_are_written():
    told = {
        (-0.031, -0.05, -0.0123): "−0.031 [−0.050, −0.012]",
        (-1.4e-6, -5e-6, 2.1e-6): "(−1.4 [−5.0, 2.1])×10⁻⁶",
        (-5.0, -10.0, -0.00004): "−5.0 [−10.0, −0.00004]",
        (0.0, 0.0, 0.0): "0 [0, 0]",
        (0.5, None, None): "0.500",
        (2500.0, 1000.0, 4000.0): "2,500 [1,000, 4,000]",
    }
    assert {one: interval(*one) for one in told} == told
    assert interval(0.1, 0.05, 0.15, factor=100) == "10.0 [5.0, 15.0]"


def test_no_page_table_or_terminal_formats_a_measured_number_itself():
    """Settings are written as they were given (`:g`), numbers that others must read back in files and drawings."""
    allowed = {
        "report/neuron_document.py",  # paths of a drawing
    }
    package = Path(mmneuron_lens.__file__).parent
    own = re.compile(r":[+,]?\.\d+[fe%]\}|format_float")
    found = {
        str(file.relative_to(package)): own.findall(file.read_text())
        for room in ("report", "paper", "evaluation")
        for file in sorted((package / room).glob("*.py"))
    }
    assert {name: some for name, some in found.items() if some and name not in allowed} == {}
