"""Hidden states: reading them as they are."""

from __future__ import annotations

from jaxtyping import Float, Shaped
from torch import Tensor

from interventions.decorators import reads


@reads("llm.norm", over="list")
def last_hidden_state(hidden: Float[Tensor, "batch token hidden"]) -> Float[Tensor, "batch token hidden"]:
    """The last hidden state after the final norm, as `output_hidden_states=True` returns it last.

    - hidden: `[batch, token, hidden]`
    """
    return hidden


@reads("llm.residual", over="list")
def keep(value: Shaped[Tensor, "*all"]) -> Shaped[Tensor, "*all"]:
    """The value itself, one item per batch; at any site. What a cache of activations is made of.

    - value: of any shape
    """
    return value


@reads("llm.residual", over="list")
def root_mean_square(hidden: Float[Tensor, "*where hidden"], epsilon: float) -> Float[Tensor, "*where"]:
    """What RMS normalisation divides by at each position.

    - hidden: `[*where, hidden]`
    - epsilon: the model's own `rms_norm_eps`

    Returns float32 `[*where]`.
    """
    return (hidden.float().pow(2).mean(-1) + epsilon).sqrt()
