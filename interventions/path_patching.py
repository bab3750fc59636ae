"""Path patching: what one component sends to one later component, all else held at the clean run.

A component that is patched adds a difference to the residual stream. Added where the receiver reads the stream, it
reaches this receiver alone; what the receiver makes of it is then put into a clean run. These are the parts:
`mmneuron_lens.experiments.path_patch` puts them together. Source: Wang et al. 2022 (arXiv 2211.00593), path patching.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import rewires, writes


@rewires("llm.attention.z")
def patch_heads(
    value: Float[Tensor, "*where head dimension"],
    source: Float[Tensor, "*where head dimension"],
    heads: Bool[Tensor, " head"],
) -> Float[Tensor, "*where head dimension"]:
    """Take the marked heads from the paired source batch.

    - value, source: `[*where, head, dimension]`, at `llm.attention.z`, or at `q`, `k` or `v`
    - heads: bool `[head]`; `k` and `v` may have fewer than `q` and `z`
    """
    return torch.where(heads[:, None], source.to(value), value)


@writes("llm.residual", difference=batch_field("difference"))
def add_difference(
    hidden: Float[Tensor, "*where hidden"], difference: Float[Tensor, "*where hidden"]
) -> Float[Tensor, "*where hidden"]:
    """Add to every position a vector of its own: what a patched component adds more than the clean one.

    - hidden: `[*where, hidden]`
    - difference: `[*where, hidden]`, a field of the batch; generated tokens have none: `.at(steps="prompt")`
    """
    return hidden + difference.to(hidden)


@writes("llm.attention.q", given=batch_field("given"))
def put_heads(
    value: Float[Tensor, "*where head dimension"],
    given: Float[Tensor, "*where head dimension"],
    heads: Bool[Tensor, " head"],
) -> Float[Tensor, "*where head dimension"]:
    """Put given values in place of the marked heads'.

    - value: `[*where, head, dimension]`, at `llm.attention.q`, `k`, `v` or `z`
    - given: of the same shape, a field of the batch; generated tokens have none: `.at(steps="prompt")`
    - heads: bool `[head]`
    """
    return torch.where(heads[:, None], given.to(value), value)


@writes("llm.mlp.out", given=batch_field("given"))
def put_values(value: Shaped[Tensor, "*all"], given: Shaped[Tensor, "*all"]) -> Shaped[Tensor, "*all"]:
    """Put given values in place.

    - value: of any shape, at a site with positions
    - given: of the same shape, a field of the batch; generated tokens have none: `.at(steps="prompt")`
    """
    return given.to(value)
