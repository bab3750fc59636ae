"""What a figure would draw as an empty axis, a flat line or one colour: said in a sentence in its place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from mmneuron_lens.artifacts.digits import number


@dataclass(frozen=True)
class Values:
    """The numbers that a figure is about, which decide whether it is drawn at all.

    - name, unit: what they are, as a sentence names it.
    - numbers: all of them; None and NaN are no numbers.
    - visible: the smallest difference that the figure could show; 0 where its axis fits the numbers.
    """

    name: str
    unit: str
    numbers: tuple[float, ...]
    visible: float = 0.0

    @staticmethod
    def of(
        name: str, unit: str, numbers: Iterable[float | None] | pl.DataFrame, *columns: str, visible: float = 0.0
    ) -> Values:
        """The numbers, or those of some columns of a frame."""
        if isinstance(numbers, pl.DataFrame):
            there = [column for column in columns if column in numbers.columns]
            numbers = [value for column in there for value in numbers[column].to_list()]
        kept = tuple(float(one) for one in numbers if one is not None and not math.isnan(one))
        return Values(name, unit, kept, visible)

    @property
    def flat(self) -> bool:
        """Whether there is nothing to see: no number, the same everywhere, or a difference too small to be visible."""
        return not self.numbers or max(self.numbers) - min(self.numbers) <= self.visible

    @property
    def sentence(self) -> str:
        """What is said where nothing is drawn."""
        if not self.numbers:
            return f"No figure: there is no number of {self.name}."
        low, high = (number(int(one) if one.is_integer() else one) for one in (min(self.numbers), max(self.numbers)))
        # A line does not break before the sign.
        unit = f"\N{NO-BREAK SPACE}{self.unit}" if self.unit else ""
        if low == high:
            return f"No figure: {self.name} is {low}{unit} everywhere."
        return f"No figure: {self.name} is between {low} and {high}{unit} everywhere, less than a figure could show."
