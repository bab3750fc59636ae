"""Deviation: how far the last hidden state moves with neurons off, as a table (Table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy
import polars as pl

from mmneuron_lens.artifacts.answers import DOMAIN
from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.metrics.intervals import mean_interval

Measure = Literal["after norm", "before norm", "last position"]


class DeviationTable(tuple[Deviations, ...]):
    """The deviations of several domains."""

    def __repr__(self) -> str:
        models = ", ".join(dict.fromkeys(one.model for one in self))
        conditions = len({pair for one in self for pair in one.conditions})
        return f"DeviationTable({models}: {', '.join(one.domain for one in self)}; {conditions} conditions)"

    def to_frame(self, measure: Measure = "after norm") -> pl.DataFrame:
        """A row per module, condition and domain; see `deviation_rows`."""
        return pl.DataFrame(deviation_rows(self, measure), infer_schema_length=None)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())


def deviation_rows(found: Sequence[Deviations], measure: Measure = "after norm") -> list[dict[str, Any]]:
    """Table 3 as rows: model, module, condition, domain, deviation, low, high (per cent), samples, spread.

    "random" and "random by layer" are means over their draws, `spread` the standard deviation between draws. The
    interval is over questions.
    """
    rows: list[dict[str, Any]] = []
    for one in found:
        names = dict.fromkeys(
            (module, name if name == DOMAIN else name.rpartition(" ")[0]) for module, name in one.conditions
        )
        for module, condition in names:
            values = 100 * one.of(module, condition, measure).numpy()
            low, high = mean_interval(values)
            draws = [
                float(100 * one.values[measure][number].mean())
                for number, (place, name) in enumerate(one.conditions)
                if place == module and name.rpartition(" ")[0] == condition
            ]
            spread = float(numpy.std(draws, ddof=1)) if len(draws) > 1 else None
            row = {"model": one.model, "module": module, "condition": condition, "domain": one.domain}
            row |= {"deviation": float(values.mean()), "low": low, "high": high, "samples": len(values)}
            rows.append(row | {"spread": spread})
    return rows
