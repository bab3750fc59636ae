"""Limits: the positions and the token ids that a model has, against what was encoded, before any forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.readable_tokens import readable
from mmneuron_lens.wire.pack import too_long
from mmneuron_lens.wire.positions import lengths as lengths_of


def positions_of(model: Model) -> int | None:
    """How many positions the language model has, with what its rotary embedding is stretched by; None where it does not
    say.
    """
    config: Any = model.module.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) or {}
    if positions is None or rotary.get("original_max_position_embeddings", positions) < positions:
        return positions
    return int(positions * rotary.get("factor", 1))


def refuse_beyond(model: Model, inputs: Mapping[str, Tensor], names: Sequence[str], new_tokens: int = 0) -> None:
    """Refuse a row that a model has no positions or embeddings for.

    - inputs: as encoded, prompts of a packed row with positions of their own.
    - names: of the rows, as an error begins with; "" where there is but one.
    - new_tokens: positions that an answer takes.

    Raises `InvalidValue` for a prompt that is longer, with its answer, than the language model has positions, or longer
    than the Q-Former has, for an id outside the embedding of either, and for a placeholder too many.
    """
    facts, tokenizer = model.architecture.facts, model.processor.tokenizer
    ids, image = inputs["input_ids"], facts["image_token"]
    lengths = lengths_of(inputs["position_ids"])
    if facts["queries"] and "pixel_values" in inputs:
        # Where no placeholder stands in the text, the Q-Former's output is put before it.
        lengths = lengths + facts["queries"] * ~(ids == image).any(1)
    _refuse_length(lengths, positions_of(model), names, model.name, new_tokens)
    rows = model.module.get_input_embeddings().weight.shape[0]
    if facts["queries"]:
        _refuse_placeholders((ids == image).sum(1), facts["queries"], names, model)
    _refuse_ids(ids.masked_fill(ids == image, 0), rows, names, model.name, tokenizer)
    if "qformer_input_ids" in inputs:
        config, words = model.module.config.qformer_config, inputs["qformer_input_ids"]
        what = f"the Q-Former of {model.name}"
        _refuse_length(inputs["qformer_attention_mask"].sum(1), config.max_position_embeddings, names, what)
        _refuse_ids(words, config.vocab_size, names, what, model.processor.qformer_tokenizer)


def _refuse_length(
    lengths: Tensor, positions: int | None, names: Sequence[str], what: str, new_tokens: int = 0
) -> None:
    longest = int(lengths.max())
    if positions is not None and longest + new_tokens > positions:
        name = names[int(lengths.argmax())]
        raise InvalidValue(name + too_long(longest, positions, what, new_tokens))


def _refuse_placeholders(held: Tensor, queries: int, names: Sequence[str], model: Model) -> None:
    wrong = ((held != 0) & (held != queries)).nonzero().flatten().tolist()
    if wrong:
        token = readable(model.processor.tokenizer, model.architecture.facts["image_token"])
        raise InvalidValue(
            f"{names[wrong[0]]}the text holds {token!r}, whose place {model.name} chooses itself; leave it out."
        )


def _refuse_ids(ids: Tensor, rows: int, names: Sequence[str], what: str, tokenizer: Any) -> None:
    if int(ids.max()) < rows:
        return
    row, column = (ids >= rows).nonzero()[0].tolist()
    number = int(ids[row, column])
    token = readable(tokenizer, number)
    raise InvalidValue(
        f"{names[row]}token {token!r} has the id {number}, and the embedding of {what} has {rows} rows; write it "
        "otherwise, or use the model's own tokenizer."
    )
