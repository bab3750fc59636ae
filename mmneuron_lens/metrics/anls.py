"""ANLS, the score of DocVQA and ST-VQA: one minus the normalised edit distance, cut off where too little agrees.

NL(a, o) = Levenshtein(a, o) / max(len(a), len(o)); a question scores the best 1 - NL over its accepted answers, and 0
unless NL is below tau = 0.5. Case does not count, and white space counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from mmneuron_lens.metrics.measured import Measured, Metric, MetricError, Pairs, choose, no_reference

Boundary = Literal["strict", "inclusive"]
BOUNDARIES: tuple[Boundary, ...] = ("strict", "inclusive")


def anls(prediction: str, answers: Sequence[str], tau: float = 0.5, boundary: Boundary = "strict") -> float:
    """The score in [0, 1] of one prediction.

    - answers: the accepted ones; the best counts.
    - tau: the distance from which on too little agrees.
    - boundary: what NL = tau scores: 0 ("strict", the definition and the package `anls`) or 1 - tau ("inclusive", as
      lmms-eval). Lengths are those of the normalised texts in both.
    """
    distance = min(
        Levenshtein.normalized_distance(_normalise(answer), _normalise(prediction), processor=None)
        for answer in answers
    )
    kept = distance < tau or (boundary == "inclusive" and distance == tau)
    return 1 - distance if kept else 0.0


def measure(pairs: Pairs, *, tau: float = 0.5, boundary: Boundary = "strict") -> Measured:
    """`anls` of each pair."""
    choose("boundary", boundary, BOUNDARIES)
    if not 0 < tau <= 1:
        raise MetricError(f"tau is {tau}; it must be above 0 and at most 1 (DocVQA: 0.5).")
    return Measured([anls(answer, sample.answers, tau, boundary) for sample, answer in pairs])


METRIC = Metric("ANLS", measure, no_reference)


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
