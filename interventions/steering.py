"""Steering: adding a direction to the residual stream."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interventions.decorators import writes


@writes("llm.residual")
def add_vector(
    hidden: Float[Tensor, "*where hidden"], vector: Float[Tensor, " hidden"], scale: float = 1.0
) -> Float[Tensor, "*where hidden"]:
    """Add a direction at every position.

    - hidden: `[*where, hidden]`
    - vector: `[hidden]`
    - scale: how many times the vector is added
    """
    return hidden + scale * vector.to(hidden)
