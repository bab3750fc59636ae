"""Attention: cutting positions off from one another."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from interventions.intervention import writes


@writes("llm.attention.mask")
def knock_out_attention(
    allowed: Bool[Tensor, "batch query key"],
    queries: Bool[Tensor, "batch query"],
    keys: Bool[Tensor, "batch key"],
) -> Bool[Tensor, "batch query key"]:
    """Forbid the marked queries to attend to the marked keys, in all heads. A position always sees itself.

    Works with every attention implementation that takes a mask. During generation the queries are those of
    the step at hand; narrow with `.at(steps="prompt")` when the masks describe the prompt.
    """
    cut = queries[:, :, None] & keys[:, None, :]
    offset = allowed.shape[-1] - allowed.shape[-2]
    itself = cut.new_ones(cut.shape[1:]).tril(offset).triu(offset)
    return allowed & ~(cut & ~itself)
