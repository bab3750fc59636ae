"""Finite: what rests on activations that are infinite, or not numbers, ends the run that makes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interventions import Graph, count_not_finite
from interventions.errors import NotFinite

GUARD = count_not_finite.at("llm.norm", steps="all", all_beams=True).named("hidden states that are not finite")
"""In every generation: an answer does not show that it was chosen among logits that are no numbers."""


def guarded(graph: Graph) -> Graph:
    """A graph that also counts, at every step of a generation, the hidden states that are not finite."""
    return graph | GUARD


def refuse_unsound(values: dict[tuple[str, str], Any], dtype: torch.dtype) -> dict[tuple[str, str], Any]:
    """The values of a guarded generation without its own. Raises `NotFinite` where it counted any."""
    site = "llm.norm"
    refuse_tally(site, values[GUARD.name, site], dtype)
    return {key: value for key, value in values.items() if key != (GUARD.name, site)}


def refuse_tally(site: str, tally: Tensor, dtype: torch.dtype) -> None:
    """Raises `NotFinite` where `count_not_finite` found anything.

    - tally: int64 [layer], or [] at a site without layers: positions with a value that is not finite.
    - dtype: of the model.
    """
    counted: list[int] = tally.reshape(-1).tolist()
    layer = next((number for number, count in enumerate(counted) if count), None)
    if layer is not None:
        where = f"{site}, layer {layer}" if tally.ndim else site
        raise NotFinite(f"{where}: activations at {counted[layer]} positions are infinite or NaN; {_cure(dtype)}")


def refuse_not_finite(site: str, values: Tensor, dtype: torch.dtype, *, layered: bool) -> None:
    """Raises `NotFinite` where numbers read at a site are infinite or NaN.

    - values: of any shape; its first axis is the layer where `layered`.
    - dtype: of the model.
    """
    wrong = ~values.isfinite()
    rows = wrong.flatten(1).sum(1) if layered else wrong.sum()[None]
    if bool(rows.any()):
        layer = int(rows.nonzero()[0])
        where = f"{site}, layer {layer}" if layered else site
        raise NotFinite(f"{where}: {int(rows[layer])} numbers read there are infinite or NaN; {_cure(dtype)}")


def _cure(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return 'float16 ends at 65,504, so load the model with dtype "bfloat16" or "float32".'
    other = "" if dtype == torch.float32 else ', or load the model with dtype "float32"'
    return f"{str(dtype).removeprefix('torch.')} seldom ends there: look for such weights in the checkpoint{other}."
