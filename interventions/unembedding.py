"""Unembedding: the logit lens of section 3.3, the Jacobian lens and the tuned lens, reduced where the states are.

All three return the same: what the final norm and unembedding make of a hidden state as it is, times a matrix, or after
an affine map. Matrices and maps are fitted with `fit_jacobian_lens` and `fit_tuned_lens`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.bindings import batch_field, module
from interventions.decorators import reads

_UNEMBED = module("llm.norm", "llm.unembed")
_CHUNK = 256


@reads("llm.residual", over="list", unembed=_UNEMBED)
def logit_lens(
    hidden: Float[Tensor, "*where hidden"], unembed: Callable[[Tensor], Tensor], top_k: int = 5, chunk: int = _CHUNK
) -> dict[str, Tensor]:
    """Equation 10 at every position: the most likely next tokens and the entropy of their distribution.

    - hidden: `[*where, hidden]`; add `"llm.embedding"` with `.at(...)` for layer 0
    - unembed: hidden states to logits, the model's final norm and unembedding
    - top_k: how many tokens
    - chunk: logits exist for at most so many positions at a time, `chunk x vocabulary` in float32

    Returns `tokens` int64 and `probabilities` `[*where, top_k]`, best first, and `entropy` `[*where]` in nats.
    """
    return _most_likely(hidden, unembed, top_k, chunk)


@reads("llm.residual", over="list", unembed=_UNEMBED)
def jacobian_lens(
    hidden: Float[Tensor, "*where hidden"],
    jacobian: Float[Tensor, "hidden hidden"],
    unembed: Callable[[Tensor], Tensor],
    top_k: int = 5,
    chunk: int = _CHUNK,
) -> dict[str, Tensor]:
    """What a state disposes the model to say: unembed(J h), with J the mean Jacobian from here to the last layer.

    Source: Gurnee, Sofroniew, Lindsey et al., "Verbalizable Representations Form a Global Workspace in Language Models"
    (2026), and the descriptions of its code, anthropics/jacobian-lens: lens(h) = unembed(J_l h),
    J_l = E[dh_final / dh_l], where h_final is the residual stream after the last layer, before the final norm. At the
    last layer J is the identity, and this the logit lens.

    - hidden: `[*where, hidden]`
    - jacobian: `[hidden, hidden]`, output by input; bind `per_layer(...)`, or take `JacobianLens.bound(lens)`
    - unembed, top_k, chunk: as of `logit_lens`

    Multiplies in float32 and unembeds in the dtype of `hidden`. Returns what `logit_lens` does.
    """
    return _most_likely(_mapped(hidden, jacobian), unembed, top_k, chunk)


@reads("llm.residual", over="list", unembed=_UNEMBED)
def tuned_lens(
    hidden: Float[Tensor, "*where hidden"],
    weight: Float[Tensor, "hidden hidden"],
    bias: Float[Tensor, " hidden"],
    unembed: Callable[[Tensor], Tensor],
    top_k: int = 5,
    chunk: int = _CHUNK,
) -> dict[str, Tensor]:
    """What a state says already of the model's answer: unembed(A h + b), trained to the final distribution.

    Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112). The
    package tuned-lens keeps A - 1 where this has A.

    - hidden: `[*where, hidden]`
    - weight, bias: `[hidden, hidden]`, output by input, and `[hidden]`; bind `per_layer(...)`, or take
      `TunedLens.bound(lens)`
    - unembed, top_k, chunk: as of `logit_lens`

    Maps in float32 and unembeds in the dtype of `hidden`. Returns what `logit_lens` does.
    """
    return _most_likely(_mapped(hidden, weight, bias), unembed, top_k, chunk)


@reads("llm.residual", over="mean", unembed=_UNEMBED, weight=batch_field("weight"), kind=batch_field("kind"))
def lens_entropy(
    hidden: Float[Tensor, "*where hidden"],
    unembed: Callable[[Tensor], Tensor],
    weight: Int[Tensor, "*where"],
    kind: Bool[Tensor, "*where kind"],
    chunk: int = _CHUNK,
) -> tuple[Float[Tensor, " kind"], Int[Tensor, " kind"]]:
    """Mean entropy of the next-token distribution for each kind of position, in nats (Figure 7, Table 9).

    - hidden: `[*where, hidden]`
    - unembed: hidden states to logits, the model's final norm and unembedding
    - weight: int64 `[*where]`, how often each position counts: 0 for padding
    - kind: bool `[*where, kind]`, one-hot in the order of `GROUP_KINDS`
    - chunk: logits exist for at most so many positions at a time

    Returns the sum, float64 `[kind]`, and the number of positions, int64 `[kind]`; a run divides them and gives
    float64 `[kind]`.
    """
    return _entropy_by_kind(hidden, unembed, weight, kind, chunk)


@reads("llm.residual", over="mean", unembed=_UNEMBED, weight=batch_field("weight"), kind=batch_field("kind"))
def jacobian_entropy(
    hidden: Float[Tensor, "*where hidden"],
    jacobian: Float[Tensor, "hidden hidden"],
    unembed: Callable[[Tensor], Tensor],
    weight: Int[Tensor, "*where"],
    kind: Bool[Tensor, "*where kind"],
    chunk: int = _CHUNK,
) -> tuple[Float[Tensor, " kind"], Int[Tensor, " kind"]]:
    """Mean entropy of what the Jacobian lens decodes, by kind of position, in nats: of unembed(J h).

    - jacobian: `[hidden, hidden]`, output by input, as of `jacobian_lens`; `JacobianLens.bound_entropy(lens)` binds it
    - hidden, unembed, weight, kind, chunk, and what comes back: as of `lens_entropy`
    """
    return _entropy_by_kind(_mapped(hidden, jacobian), unembed, weight, kind, chunk)


def _entropy_by_kind(
    hidden: Float[Tensor, "*where hidden"],
    unembed: Callable[[Tensor], Tensor],
    weight: Int[Tensor, "*where"],
    kind: Bool[Tensor, "*where kind"],
    chunk: int,
) -> tuple[Float[Tensor, " kind"], Int[Tensor, " kind"]]:
    entropy = _lens_by_chunks(hidden.flatten(0, -2), unembed, 1, chunk)[2]
    counted = (weight[..., None] * kind).flatten(0, -2)
    # Where a position does not count, it may hold anything.
    summed = (entropy.double()[:, None] * counted).masked_fill(counted == 0, 0)
    return summed.sum(0), counted.sum(0)


def _mapped(
    hidden: Float[Tensor, "*where hidden"],
    matrix: Float[Tensor, "hidden hidden"],
    shift: Float[Tensor, " hidden"] | None = None,
) -> Float[Tensor, "*where hidden"]:
    mapped = hidden.float() @ matrix.float().T
    return (mapped if shift is None else mapped + shift.float()).to(hidden.dtype)


def _most_likely(
    hidden: Float[Tensor, "*where hidden"], unembed: Callable[[Tensor], Tensor], top_k: int, chunk: int
) -> dict[str, Tensor]:
    tokens, probabilities, entropy = _lens_by_chunks(hidden.flatten(0, -2), unembed, top_k, chunk)
    where = hidden.shape[:-1]
    return {
        "tokens": tokens.unflatten(0, where),
        "probabilities": probabilities.unflatten(0, where),
        "entropy": entropy.unflatten(0, where),
    }


def _lens_by_chunks(
    hidden: Float[Tensor, "position hidden"], unembed: Callable[[Tensor], Tensor], top_k: int, chunk: int
) -> tuple[Int[Tensor, "position k"], Float[Tensor, "position k"], Float[Tensor, " position"]]:
    # Made before the logits: small results between large ones would keep freed memory from being used again.
    tokens = torch.empty(len(hidden), top_k, dtype=torch.int64, device=hidden.device)
    probabilities = torch.empty(len(hidden), top_k, dtype=torch.float32, device=hidden.device)
    entropy = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), chunk):
        here = slice(start, start + chunk)
        tokens[here], probabilities[here], entropy[here] = _lens(hidden[here], unembed, top_k)
    return tokens, probabilities, entropy


def _lens(
    hidden: Float[Tensor, "position hidden"], unembed: Callable[[Tensor], Tensor], top_k: int
) -> tuple[Int[Tensor, "position k"], Float[Tensor, "position k"], Float[Tensor, " position"]]:
    logits = unembed(hidden).float()
    best, tokens = logits.topk(top_k, dim=-1)
    # From the largest logit on, so that no digits are lost; three tensors of this size at a time, and no more.
    shifted = logits - best[:, :1]
    del logits
    spread = shifted.exp()
    total = spread.sum(-1)
    entropy = total.log() - (spread * shifted).sum(-1) / total
    return tokens, spread.gather(-1, tokens) / total[:, None], entropy
