"""Direct logit attribution: how much each component's output adds to a logit."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interventions.decorators import reads


@reads("llm.embedding", "llm.attention.out", "llm.mlp.out", over="list")
def direct_logit_attribution(
    component: Float[Tensor, "*where hidden"], direction: Float[Tensor, " hidden"]
) -> Float[Tensor, "*where"]:
    """What this component adds along a direction, before the final norm divides by its scale.

    - component: `[*where, hidden]`, the embedding, or what a layer's attention or MLP adds
    - direction: `[hidden]`, a row of the unembedding (or the difference of two) times the weight of the final norm

    The contributions of the embedding and of every layer's attention and MLP, divided by `root_mean_square` of the
    last residual stream, add up to the logit (or difference) exactly, since the norm of a Llama has no bias.

    Returns `[*where]`, in logits times that scale.
    """
    return component @ direction.to(component)
