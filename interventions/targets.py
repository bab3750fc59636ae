"""Targets: one number a row whose gradient says what matters for an answer; each is a read too, of its own value."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.bindings import batch_field
from interventions.decorators import reads


@reads("llm.logits", over="list", answer=batch_field("answer"))
def answer_log_probability(
    logits: Float[Tensor, "row token vocabulary"], answer: Int[Tensor, "row token"]
) -> Float[Tensor, " row"]:
    """The log-probability of the answer given its prompt: the sum of those of its tokens.

    - logits: `[row, token, vocabulary]`
    - answer: int64 `[row, token]`, at each position the token of the answer that comes next, -1 where none does, as
      `lens.encode(images, texts, answers=[...])` lays it out

    Returns float32 (float64 of a float64 model) `[row]`, in nats; the token that ends an answer is no part of it.
    """
    flat, coming = logits.flatten(0, 1), answer.flatten()
    # Where no token comes next, the vocabulary is not gone through.
    places = (coming >= 0).nonzero()[:, 0]
    chosen = flat[places]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    each = chosen.log_softmax(-1).gather(-1, coming[places, None])[:, 0]
    rows = torch.div(places, answer.shape[1], rounding_mode="floor")
    return each.new_zeros(answer.shape[0]).index_add(0, rows, each)


@reads("llm.logits", over="list")
def logit_difference(
    logits: Float[Tensor, "row token vocabulary"], right: Int[Tensor, " row"], wrong: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """By how much the logit of one token exceeds that of another, as what comes next behind each prompt.

    - logits: `[row, token, vocabulary]`; prompts end at the last position
    - right, wrong: int64 `[row]`, token ids

    Returns `[row]`.
    """
    last = logits[:, -1]
    return (last.gather(-1, right[:, None]) - last.gather(-1, wrong[:, None]))[:, 0]
