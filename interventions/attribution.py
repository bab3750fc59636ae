"""Attribution: how much each component or neuron adds to a logit or another target."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import reads
from interventions.values import value_of


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


@reads("llm.mlp.post", over="list")
def attribution(
    value: Float[Tensor, "*where neuron"], gradient: Float[Tensor, "*where neuron"]
) -> Float[Tensor, "*where neuron"]:
    """Gradient times value: to first order, by how much a target falls if the value were 0.

    - value: `[*where, neuron]`, or of any other site
    - gradient: of the same shape, `gradient(target)`

    Returns `[*where, neuron]`, in units of the target. Source: attribution patching (Nanda 2023), with a baseline of 0.
    """
    return value * gradient


@reads("llm.mlp.post", over="list", baseline=value_of(source=True))
def integrated_gradients(
    value: Float[Tensor, "*where neuron"],
    gradient: Float[Tensor, "*where neuron"],
    baseline: Float[Tensor, "*where neuron"],
) -> Float[Tensor, "*where neuron"]:
    """How much of the change of a target from a baseline goes through each value, for `lens.run_between`.

    - value: `[*where, neuron]`, or of any other site
    - gradient: of the same shape, `gradient(target)`, the mean along the way from the baseline
    - baseline: of the same shape, the value on the baseline

    Returns `[*where, neuron]`, in units of the target. At `llm.embedding` its sum over positions and neurons is the
    target's change (completeness), but for what the points of the line miss. Source: Sundararajan et al. 2017 (arXiv
    1703.01365); for neurons, arXiv 2506.09047.
    """
    return (value - baseline) * gradient


@reads("llm.mlp.post", over="sum", weight=batch_field("weight"))
def summed_attribution(
    value: Float[Tensor, "*where neuron"], gradient: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]
) -> Float[Tensor, " neuron"]:
    """`attribution` summed over positions: by how much a target falls, to first order, without the neuron.

    - value: `[*where, neuron]`
    - gradient: of the same shape, `gradient(target)`
    - weight: int64 `[*where]`, 0 for padding

    Returns float64 `[neuron]`, in units of the target, summed over rows and batches.
    """
    product = (value.double() * gradient).masked_fill_((weight == 0)[..., None], 0)
    return product.flatten(0, -2).sum(0)
