"""RSVQA: accuracy by kind of question, overall (OA), and averaged over kinds (AA), areas compared by bucket.

Buckets as in the official `VocabEncoder.py`: 0m2, 1-10, 11-100, 101-1000, above; counts are compared as numbers in the
high-resolution corpus, by the same bounds in the low-resolution one (`range_numbers`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics.measured import Measured, Metric, Pairs, no_reference

KINDS = ("presence", "comp", "count", "area", "rural_urban")
"""Kinds of question: the first four in the high-resolution corpus, rural_urban for area in the low-resolution one."""

BOUNDS = (0, 10, 100, 1000)
AREA = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?) ?m(?:2|²)")
NUMBER = re.compile(r"\d+")


def normalise(answer: str, range_numbers: bool = False) -> str:
    """Lower case, one final `.` or `?` off, areas (and numbers, with `range_numbers`) as the text of their bucket.

    An answer that is a bucket's text already stays as it is.
    """
    text = " ".join(answer.lower().split())
    text = text[:-1].rstrip() if text.endswith((".", "?")) else text
    if area := AREA.fullmatch(text):
        return _bucket(Fraction(area[1].replace(",", "")), "m2")
    if range_numbers and NUMBER.fullmatch(text):
        return _bucket(Fraction(text), "")
    return text


def measure(pairs: Pairs, *, range_numbers: bool = False) -> Measured:
    """1 where the normalised answer equals a normalised accepted one, else 0; the overall mean is OA.

    - pairs: samples with answers. range_numbers: numbers are compared by bucket as areas are, as in the
      low-resolution corpus.
    """
    scores = []
    for sample, answer in pairs:
        accepted = {normalise(one, range_numbers) for one in sample.answers}
        scores.append(float(normalise(answer, range_numbers) in accepted))
    return Measured(scores, mean_of_kinds="AA")


def refuse(sample: Sample) -> str:
    """AA needs a known kind of each question."""
    if sample.kind not in KINDS:
        return f"is of kind {sample.kind!r}; RSVQA has {', '.join(KINDS)}."
    return no_reference(sample)


METRIC = Metric("RSVQA overall accuracy (OA)", measure, refuse)


def _bucket(number: Fraction, unit: str) -> str:
    if number == 0:
        return f"0{unit}"
    for low, high in pairwise(BOUNDS):
        if number <= high:
            return f"between {low}{unit} and {high}{unit}"
    return f"more than {BOUNDS[-1]}{unit}"
