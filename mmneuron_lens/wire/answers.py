"""Answers: given answers behind their prompts, so that one forward says how likely each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mmneuron_lens.wire.encode import extend
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.types import Inputs

NO_TOKEN = -1
"""Where no token of an answer comes next."""


def append_answers(
    inputs: Mapping[str, Tensor], answers: Sequence[Sequence[int]], pad: int, facts: Facts
) -> tuple[Inputs, Int[Tensor, "row token"]]:
    """The inputs with an answer behind each prompt, padded on the right.

    answers: token ids, per row. pad: the id that stands behind shorter answers. Returns `(inputs, next)`: next is int64
    `[rows, tokens]`, at each position the token of the answer that comes next, `NO_TOKEN` where none does.
    """
    width = max(len(answer) for answer in answers)
    ids = torch.tensor([[*answer, *[NO_TOKEN] * (width - len(answer))] for answer in answers])
    start = inputs["input_ids"].shape[1]
    longer = extend(inputs, ids.to(inputs["input_ids"].device), NO_TOKEN, facts)
    longer["input_ids"] = longer["input_ids"].masked_fill(longer["input_ids"] == NO_TOKEN, pad)
    coming = torch.full_like(longer["input_ids"], NO_TOKEN)
    coming[:, start - 1 : start - 1 + width] = ids
    return longer, coming
