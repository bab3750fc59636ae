"""MANU: neurons whose use differs most between image and text, in a domain more than in the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.pooled import Pooled, pooled
from mmneuron_lens.neurons.selectors.registry import Scores, selector

_REST = 1e-6

_SOURCE = """MANU (arXiv 2502.15910); the four terms and the ratio as a re-implementation in MIP-Editor writes them, not
read in the paper. There, m is a question with its image and t the same without it, both at the last token of the
prompt, which is one value a question. Here, m and t are the image tokens and the text tokens of the same forwards, and
frequencies and squares are a token's, as there are not as many of both. A module without one of the two (towers and
projectors see no text) has no part in a run without it, so its t is 0 there. The denominator of means is of their
absolute values, which is the same for means that are not negative and bounds the term otherwise."""


@selector("manu", needs=("counts", "moments"), source=_SOURCE, value="post", epsilon=1e-6)
def manu(observed: Observed, *, value: str = "post", epsilon: float = 1e-6) -> Scores:
    """I in the domain over I in all other domains together.

    I = |zm - zt| / (|zm| + |zt| + e) + |nm - nt| / (nm + nt + e) + sqrt(vm + vt) + sqrt(|sm - st| / (sm + st + e)),
    with z the mean, n the share of tokens above 0.1, v the variance and s the mean square of image tokens (m: every
    kind but "text") and of text tokens (t). What was unsure is told in the selector's `source`.

    - value: "post", what the down projection is given, as there; or "act". The same where an MLP is not gated.
    - epsilon: e.

    Returns scores by site; -inf in a domain without tokens at a site. The published set is a top share of these.
    """
    return {
        site: _at(observed, observed.moments[0].site_of(site, value), epsilon) for site in observed.counts[0].active
    }


def _at(observed: Observed, site: str, epsilon: float) -> Float64[Tensor, "layer neuron domain"]:
    image = pooled(observed.moments, site, lambda kind: kind != "text")
    text = pooled(observed.moments, site, lambda kind: kind == "text")
    own = _importance(_Side.of(image), _Side.of(text), epsilon)
    rest = _importance(_Side.of(image.rest()), _Side.of(text.rest()), epsilon)
    return (own / (rest + _REST)).masked_fill(image.tokens + text.tokens == 0, -torch.inf)


@dataclass(frozen=True)
class _Side:
    """Of the tokens of one side, 0 where there are none: `[layer, neuron, domain]`."""

    mean: Tensor
    share: Tensor
    variance: Tensor
    square: Tensor

    @classmethod
    def of(cls, side: Pooled) -> _Side:
        share, square = side.above / side.tokens, side.squares / side.tokens
        return cls(*(one.nan_to_num(0) for one in (side.mean, share, side.variance, square)))


def _importance(one: _Side, other: _Side, epsilon: float) -> Tensor:
    means = (one.mean - other.mean).abs() / (one.mean.abs() + other.mean.abs() + epsilon)
    shares = (one.share - other.share).abs() / (one.share + other.share + epsilon)
    squares = (one.square - other.square).abs() / (one.square + other.square + epsilon)
    return means + shares + (one.variance + other.variance).sqrt() + squares.sqrt()
