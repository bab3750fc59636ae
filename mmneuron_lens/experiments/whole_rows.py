"""Whole rows: one prompt in each, which is what an analysis by rows needs."""

from __future__ import annotations

from interventions.errors import InvalidValue
from mmneuron_lens.runtime.batch import Batch


def refuse_packed_rows(batch: Batch) -> None:
    """Raise `InvalidValue` for a batch whose rows hold several prompts: a row then has no one last position."""
    if batch.sharing.get("cuts") or any(isinstance(text, tuple) and len(text) > 1 for text in batch.given[1]):
        raise InvalidValue("A packed batch has several prompts in a row; make one with lens.encode(images, texts).")
