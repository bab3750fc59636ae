"""Sharing: when prompts in one row, or rows in one batch, still compute what each computes alone.

Prompts share a row where attention is plainly causal over one position a token. What is not known to be so is not
shared: read in transformers 5.22, model type by model type.
"""

from __future__ import annotations

from typing import Any

from mmneuron_lens.wire.facts_types import Sharable

PLAIN = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"),
    *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "glm4v_text"),
)
"""Language models that take a mask `[row, 1, query, key]` as it is and rotate by the positions that they are given."""

OF_GRIDS = ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "glm4v_text")
"""Those that are given a time, a row and a column of every position."""

SEEN = ("full_attention", "sliding_attention")
"""Kinds of layer whose keys are those before a position, all of them or the last ones."""

UNCHANGING = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies are the same whatever the length of the sequence."""

BY_LENGTH = ("dynamic", "longrope")
"""Those that have other frequencies once a sequence is longer than the original context."""


def sharable(config: Any) -> Sharable:
    """What a language model's configuration says of sharing."""
    return {"apart": _why_apart(config), "window": _window(config), "rescaled": _rescaled(config)}


def _why_apart(config: Any) -> str:
    """Why prompts never share a row; empty where they do."""
    if config.model_type not in PLAIN:
        return f"attention of {config.model_type} is not known to be plainly causal over one position a token"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "attention is not causal"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(SEEN))
    if others:
        return f"it has layers of {', '.join(others)}"
    if config.model_type not in OF_GRIDS and any(rope.get("mrope_section") for rope in _ropes(config)):
        return "a position is three numbers, not one"
    kinds = sorted({_kind(rope) for rope in _ropes(config)} - {*UNCHANGING, *BY_LENGTH})
    return f"its rotary embedding is {', '.join(kinds)}, which is not known" if kinds else ""


def _window(config: Any) -> int | None:
    """How many positions a layer sees at least, itself among them; None where each sees all before it."""
    kinds = getattr(config, "layer_types", None)
    # A Mistral has its window in every layer, whatever kinds are written down.
    slides = config.model_type != "qwen2" or kinds is None or "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if slides else None


def _rescaled(config: Any) -> int | None:
    """Positions from which on rotary frequencies depend on the longest row of a batch; None where they never do."""
    original = {
        "dynamic": lambda _: config.max_position_embeddings,
        "longrope": lambda rope: rope["original_max_position_embeddings"],
    }
    return min((original[_kind(rope)](rope) for rope in _ropes(config) if _kind(rope) in BY_LENGTH), default=None)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The parameters of the rotary embedding, of each kind of layer where they differ."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in found.values() if isinstance(one, dict)]
    return nested or ([found] if found else [])


def _kind(rope: dict[str, Any]) -> str:
    return rope.get("rope_type", "default")
