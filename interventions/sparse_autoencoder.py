"""Sparse autoencoders: their features read and counted like neurons, changed, or put in place of a hidden state.

f = relu(W_enc (x - b_dec) + b_enc), and x is written again as W_dec f + b_dec. A feature below its threshold is 0
(JumpReLU, arXiv 2407.14435), and so is one that is not among the k largest (TopK, arXiv 2406.04093).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.counting import count_active_by_kind
from interventions.decorators import reads, writes

_CHUNK = 1024

_count_by_kind = count_active_by_kind.function


@reads("llm.residual", over="list")
def sae_features(
    hidden: Float[Tensor, "*where hidden"],
    encoder: Float[Tensor, "hidden feature"],
    encoder_bias: Float[Tensor, " feature"],
    decoder_bias: Float[Tensor, " hidden"],
    threshold: Float[Tensor, " feature"] | None = None,
    top_k: int | None = None,
    centred: bool = True,
) -> Float[Tensor, "*where feature"]:
    """The features of a sparse autoencoder at every position.

    - hidden: `[*where, hidden]`, at the site and layer that the autoencoder was trained on: narrow it with `.at(...)`
    - encoder, encoder_bias, decoder_bias: `[hidden, feature]`, `[feature]`, `[hidden]`
    - threshold: `[feature]`, what a feature must exceed (JumpReLU)
    - top_k: how many of the largest features a position keeps (TopK)
    - centred: whether the bias of the decoder is taken off first; not so in some autoencoders, such as Gemma Scope's

    `load_autoencoder(file).bindings("encoder")` gives the tensors.

    Returns `[*where, feature]`, of `hidden`'s dtype.
    """
    return _features(hidden, encoder, encoder_bias, decoder_bias, threshold, top_k, centred)


@reads("llm.residual", over="sum", weight=batch_field("weight"), kind=batch_field("kind"))
def count_features(
    hidden: Float[Tensor, "*where hidden"],
    weight: Int[Tensor, "*where"],
    kind: Bool[Tensor, "*where kind"],
    encoder: Float[Tensor, "hidden feature"],
    encoder_bias: Float[Tensor, " feature"],
    decoder_bias: Float[Tensor, " hidden"],
    threshold: Float[Tensor, " feature"] | None = None,
    top_k: int | None = None,
    centred: bool = True,
) -> Int[Tensor, "kind feature"]:
    """How often each feature is active, for each kind of position: what `count_active_by_kind` is for neurons.

    Divided by `count_positions`, these are the probabilities that neurons are selected by (SAE-LAPE, arXiv 2507.11230).
    Features of 1,024 positions exist at a time.

    - hidden: `[*where, hidden]`
    - weight: int64 `[*where]`, how often each position counts: 0 for padding, at most 65,535
    - kind: bool `[*where, kind]`, one-hot in the order of `GROUP_KINDS`
    - encoder, encoder_bias, decoder_bias, threshold, top_k, centred: as in `sae_features`

    Returns int64 `[kind, feature]`.
    """
    rows = zip(
        torch.split(hidden.flatten(0, -2), _CHUNK),
        torch.split(weight.flatten(), _CHUNK),
        torch.split(kind.flatten(0, -2), _CHUNK),
        strict=True,
    )
    counts = torch.zeros(kind.shape[-1], encoder.shape[1], dtype=torch.int64, device=hidden.device)
    for some, weights, kinds in rows:
        features = _features(some, encoder, encoder_bias, decoder_bias, threshold, top_k, centred)
        counts += _count_by_kind(features, weights, kinds)
    return counts


@writes("llm.residual")
def splice_autoencoder(
    hidden: Float[Tensor, "*where hidden"],
    encoder: Float[Tensor, "hidden feature"],
    encoder_bias: Float[Tensor, " feature"],
    decoder: Float[Tensor, "feature hidden"],
    decoder_bias: Float[Tensor, " hidden"],
    threshold: Float[Tensor, " feature"] | None = None,
    top_k: int | None = None,
    centred: bool = True,
) -> Float[Tensor, "*where hidden"]:
    """Put in place of the hidden state what the autoencoder makes of it: x becomes W_dec f(x) + b_dec.

    How much the model's answers change is what the autoencoder leaves out.

    - hidden: `[*where, hidden]`, narrowed to the autoencoder's own site and layer
    - decoder: `[feature, hidden]`
    - encoder, encoder_bias, decoder_bias, threshold, top_k, centred: as in `sae_features`
    """
    features = _features(hidden, encoder, encoder_bias, decoder_bias, threshold, top_k, centred)
    return features @ decoder.to(hidden) + decoder_bias.to(hidden)


@writes("llm.residual")
def scale_features(
    hidden: Float[Tensor, "*where hidden"],
    features: Bool[Tensor, " feature"],
    factor: float,
    encoder: Float[Tensor, "hidden feature"],
    encoder_bias: Float[Tensor, " feature"],
    decoder: Float[Tensor, "feature hidden"],
    decoder_bias: Float[Tensor, " hidden"],
    threshold: Float[Tensor, " feature"] | None = None,
    top_k: int | None = None,
    centred: bool = True,
) -> Float[Tensor, "*where hidden"]:
    """Multiply the marked features and keep all else, what the autoencoder leaves out included.

    x becomes x + W_dec (f' - f), which is the spliced state with its error added: x - (W_dec f + b_dec).

    - hidden: `[*where, hidden]`, narrowed to the autoencoder's own site and layer
    - features: bool `[feature]`
    - factor: 0 switches off, 1 changes nothing
    - decoder: `[feature, hidden]`
    - encoder, encoder_bias, decoder_bias, threshold, top_k, centred: as in `sae_features`
    """
    active = _features(hidden, encoder, encoder_bias, decoder_bias, threshold, top_k, centred)
    changed = (factor - 1) * active.masked_fill(~features, 0)
    return hidden + changed @ decoder.to(hidden)


def _features(
    hidden: Float[Tensor, "*where hidden"],
    encoder: Float[Tensor, "hidden feature"],
    encoder_bias: Float[Tensor, " feature"],
    decoder_bias: Float[Tensor, " hidden"],
    threshold: Float[Tensor, " feature"] | None,
    top_k: int | None,
    centred: bool,
) -> Float[Tensor, "*where feature"]:
    given = hidden - decoder_bias.to(hidden) if centred else hidden
    before = given @ encoder.to(hidden) + encoder_bias.to(hidden)
    features = before.relu()
    if threshold is not None:
        features = features.masked_fill(before <= threshold.to(hidden), 0)
    if top_k is not None:
        kept = before.topk(top_k, dim=-1).indices
        features = torch.zeros_like(features).scatter(-1, kept, features.gather(-1, kept))
    return features
