"""Vocabulary of a neuron: the tokens that it writes for, and those that it writes against.

Top and bottom of W_down[:, i]^T W_U (MM_Neurons; HONES, arXiv 2604.17941): no input is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import InvalidValue, OutOfRange
from interventions.narrowing import indices
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.experiments.token_directions import (
    down_projection,
    final_norm,
    refuse_norm_behind,
    unembedding,
)
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.readable_tokens import readable

_CELLS = 2**24
"""Scores that exist at a time: 64 MiB in float32."""


@dataclass(frozen=True)
class NeuronWords:
    """The tokens of one neuron, each with its score: `top` highest first, `bottom` lowest first."""

    layer: int
    neuron: int
    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        words = [", ".join(word for word, _ in some) for some in (self.top, self.bottom)]
        return f"layer {self.layer}, neuron {self.neuron}: + {words[0]}; - {words[1]}"


@dataclass(frozen=True)
class NeuronVocabulary:
    """What neurons of one layer write, in the order they were asked for.

    - model: its name
    - neurons: one entry each
    """

    model: str
    neurons: tuple[NeuronWords, ...]

    def __iter__(self) -> Iterator[NeuronWords]:
        return iter(self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)

    def __repr__(self) -> str:
        return "\n".join([f"NeuronVocabulary of {self.model}", *(f"  {one}" for one in self.neurons)])

    def to_frame(self) -> pl.DataFrame:
        """A row per neuron, side ("top", "bottom") and rank from 1: layer, neuron, side, rank, token, score."""
        rows: list[dict[str, Any]] = [
            {"layer": one.layer, "neuron": one.neuron, "side": side, "rank": rank, "token": word, "score": score}
            for one in self.neurons
            for side, words in (("top", one.top), ("bottom", one.bottom))
            for rank, (word, score) in enumerate(words, 1)
        ]
        return pl.DataFrame(rows)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())


def neuron_vocabulary(
    lens: Lens,
    layer: int,
    neurons: int | Iterable[int],
    top_k: int = 10,
    *,
    site: str = "llm.mlp.post",
    through_norm: bool = False,
) -> NeuronVocabulary:
    """The tokens with the highest and lowest <W_down[:, i], W_U[y]>, of neurons of the language model.

    - layer: negative ones from the end
    - neurons: one index or several
    - top_k: how many tokens on either side
    - site: `llm.mlp.post` or `llm.mlp.act`, whose neurons are the same
    - through_norm: times the weight of the final norm, as `write_in` has it; the published formula leaves it out

    A negative activation swaps the sides. Rows of the unembedding beyond the tokenizer's words are left out. Scores of
    all neurons and tokens are never held at once.

    Raises `InvalidValue` for another site, quantized weights, none at all, or a decoder with a norm behind its MLP,
    `OutOfRange` for a layer, a neuron or a `top_k` that is not there.
    """
    _refuse_site(site)
    refuse_norm_behind(lens)
    down, asked = down_projection(lens, layer), indices("neurons", neurons)
    words = unembedding(lens)[: len(lens.processor.tokenizer)]
    if strange := [one for one in asked if not 0 <= one < down.shape[1]]:
        raise OutOfRange(f"There is no neuron {strange[0]}; a layer of {lens.name} has 0 to {down.shape[1] - 1}.")
    if not 1 <= top_k <= len(words):
        raise OutOfRange(f"top_k is {top_k}; give 1 to {len(words)}, the number of tokens.")
    written = down[:, list(asked)].float().T
    if through_norm:
        written = written * final_norm(lens).weight.to(written.device)
    number = layer % (lens.architecture.place("llm.mlp.post").layers or 1)
    sides = [_best(sign * written, words, top_k) for sign in (1, -1)]
    found: list[NeuronWords] = []
    for place, neuron in enumerate(asked):
        top, bottom = (
            tuple(
                (readable(lens.processor.tokenizer, int(token)), sign * float(score))
                for token, score in zip(tokens[place], scores[place], strict=True)
            )
            for sign, (scores, tokens) in zip((1, -1), sides, strict=True)
        )
        found.append(NeuronWords(number, neuron, top, bottom))
    return NeuronVocabulary(lens.name, tuple(found))


def _best(
    written: Float[Tensor, "neuron hidden"], words: Float[Tensor, "token hidden"], top_k: int
) -> tuple[Tensor, Tensor]:
    """Scores and ids of the best tokens of each neuron, [neuron, top_k]; the vocabulary is seen by chunks."""
    chunk = max(top_k, _CELLS // len(written))
    scores = torch.empty(len(written), 0, dtype=torch.float32, device=written.device)
    tokens = torch.empty(len(written), 0, dtype=torch.int64, device=written.device)
    for start in range(0, len(words), chunk):
        some = written @ words[start : start + chunk].to(written.device).float().T
        values, places = some.topk(min(top_k, some.shape[1]), dim=1)
        scores, tokens = torch.cat([scores, values], 1), torch.cat([tokens, places + start], 1)
        scores, kept = scores.topk(min(top_k, scores.shape[1]), dim=1)
        tokens = tokens.gather(1, kept)
    return scores, tokens


def _refuse_site(site: str) -> None:
    if site in ("llm.mlp.post", "llm.mlp.act"):
        return
    raise InvalidValue(
        f"Neurons at {site} write into no stream that is unembedded, so they have no vocabulary; only those at "
        "llm.mlp.post do. Through the projector it would be a linear approximation; see what they do with zero_neurons."
    )
