"""Write-in: how much each neuron of the language model adds to the logit of a token."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interventions.decorators import reads


@reads("llm.mlp.post", over="list")
def neuron_write_in(
    post: Float[Tensor, "*where neuron"], direction: Float[Tensor, " neuron"]
) -> Float[Tensor, "*where neuron"]:
    """What every neuron adds along a direction: c_i = z_i <W_down[:, i], u>, before the final norm's scale.

    - post: `[*where, neuron]`, z: what the down projection is given
    - direction: `[neuron]`, what one unit of each neuron adds along u, a row of the unembedding times the final norm's
      weight: `per_layer(write_in_weights(lens, "yes"))` of `mmneuron_lens.experiments.token_directions`

    Divided by `root_mean_square` of the last residual stream, these of all layers, and what the embedding and every
    layer's attention add (`direct_logit_attribution`), sum up to the logit, where projections and unembedding have no
    bias. Narrow it with `.at(positions=-1)`: it keeps a number for every neuron and position.

    Source: the contribution of a neuron to a token, MM_Neurons and HONES (arXiv 2604.17941).

    Returns `[*where, neuron]`, in logits times that scale.
    """
    return post * direction.to(post)
