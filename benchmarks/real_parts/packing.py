"""Many questions about one image in one row: a causal model computes what precedes the questions once.

The questions lie one after another behind the image and are hidden from each other; each counts its positions on from
the shared beginning, so it computes what it does alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from mmneuron_lens.corpora import prompts
from mmneuron_lens.embedded.corpus.canvas import Question
from mmneuron_lens.wire.pack import common

Form = Literal["identification", "evaluation"]
IGNORED = -100


@dataclass(frozen=True)
class Packed:
    """ids, positions int64 `[row, token]`; mask bool `[row, 1, token, token]`; labels int64 `[row, token]`, at the
    place that predicts them; owner int64 `[row, token]`: the number of the question that a label belongs to, or -1."""

    images: dict[str, Tensor]
    ids: Int[Tensor, "row token"]
    positions: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row 1 token token"]
    labels: Int[Tensor, "row token"]
    owner: Int[Tensor, "row token"]


def pack(
    processor: Any, images: Sequence[Image.Image], asked: Sequence[Sequence[Question]], sources: Sequence[str],
    form: Form,
) -> Packed:  # fmt: skip
    """Each image with its questions as a row, through the model's own processor. sources: decide the driving role."""
    tokenizer = processor.tokenizer
    inputs = dict(processor.image_processor(list(images), return_tensors="pt"))
    rows, number = [], 0
    for index, questions in enumerate(asked):
        placeholder = processor.replace_image_token(inputs, index)
        texts = [prompt(question, sources[index], form).replace("<image>", placeholder) for question in questions]
        whole = [tokenizer(text).input_ids for text in texts]
        shared = min(common(whole), min(map(len, whole)) - 1)
        ids, labels, owner = list(whole[0][:shared]), [IGNORED] * shared, [-1] * shared
        segments, positions = [0] * shared, list(range(shared))
        for segment, (question, tokens) in enumerate(zip(questions, whole, strict=True), start=1):
            answer = tokenizer(f" {question.answer}", add_special_tokens=False).input_ids
            rest = [*tokens[shared:], *answer]
            told = [*answer, tokenizer.eos_token_id]
            ids += rest
            labels += [IGNORED] * (len(rest) - len(told)) + told
            owner += [-1] * (len(rest) - len(told)) + [number] * len(told)
            segments += [segment] * len(rest)
            positions += range(shared, shared + len(rest))
            number += 1
        rows.append((ids, positions, segments, labels, owner))
    length = max(len(row[0]) for row in rows)
    fills = (tokenizer.pad_token_id, 0, -1, IGNORED, -1)
    ids, positions, segments, labels, owner = (
        torch.tensor([row[part] + [fill] * (length - len(row[part])) for row in rows])
        for part, fill in enumerate(fills)
    )
    mine, theirs = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = causal & ((theirs == 0) | (theirs == mine))
    return Packed(inputs, ids, positions, mask[:, None], labels, owner)


def prompt(question: Question, source: str, form: Form) -> str:
    """The paper's prompts, as LLaVA-NeXT is asked; options are shown in the evaluation form only."""
    if form == "identification":
        return prompts.identification("llava-next", question.question)
    return prompts.evaluation("llava-next", question.question, question.options, source)


def logits(model: Any, batch: Packed) -> Float[Tensor, "label vocabulary"]:
    """What the model says at every label, float32, row by row. The frozen parts may be in bfloat16, the connector not.

    Vision runs without gradients; they flow through the language model into the connector.
    """
    inner, frozen = model.model, model.model.language_model.norm.weight.dtype
    config = inner.config
    sizes = batch.images["image_sizes"]
    tiles = [
        image_size_to_num_patches(size.tolist(), config.image_grid_pinpoints, config.vision_config.image_size)
        for size in sizes
    ]
    pixels = torch.cat([one[:count] for one, count in zip(batch.images["pixel_values"], tiles, strict=True)])
    with torch.no_grad():
        seen = inner.vision_tower(pixels.to(frozen), output_hidden_states=True).hidden_states
    features = inner.multi_modal_projector(seen[config.vision_feature_layer][:, 1:].float())
    features, _ = inner.pack_image_features(
        features.split(tiles), sizes, vision_feature_select_strategy="default", image_newline=inner.image_newline
    )
    places = (batch.ids == config.image_token_id)[..., None]
    embedded = inner.language_model.embed_tokens(batch.ids)
    embedded = embedded.masked_scatter(places, torch.cat(features).to(frozen))
    hidden = inner.language_model(
        inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[batch.labels != IGNORED]).float()
