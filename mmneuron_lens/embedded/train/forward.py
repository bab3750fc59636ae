"""One forward of any model that runs the vision tower once per image however many questions are asked about it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    Idefics3ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from mmneuron_lens.embedded.train.batches import IGNORED, TrainingBatch


class Forward(NamedTuple):
    """`logits` and `labels` where an answer or the end is predicted; `patches` and `queries` for temporary heads."""

    logits: Float[Tensor, "place vocabulary"]
    labels: Int[Tensor, " place"]
    patches: Float[Tensor, "image patch width"]
    queries: Float[Tensor, "row query width"] | None = None


def see(model: PreTrainedModel, images: dict[str, Tensor]) -> tuple[Float[Tensor, "image patch width"], object]:
    """The vision tower alone: every image's patches (zero in missing tiles), and what the rest of the model reads."""
    if isinstance(model, LlavaNextForConditionalGeneration):
        seen = model.model.get_image_features(images["pixel_values"], images["image_sizes"], return_dict=True)
        chosen = seen.hidden_states[model.config.vision_feature_layer][:, 1:]
        return _padded(chosen, _tiles(model, images)), torch.cat(list(seen.pooler_output))
    if isinstance(model, Idefics3ForConditionalGeneration):
        # An image's last tile is its overview, so that missing tiles are the first.
        there = images["pixel_attention_mask"][..., 0, 0].bool()
        seen = model.model.get_image_features(images["pixel_values"], images["pixel_attention_mask"])
        return _padded(seen.last_hidden_state, there.flip(1)), torch.cat(seen.pooler_output)
    seen = model.vision_model(images["pixel_values"]).last_hidden_state
    return seen[:, 1:], seen


def _padded(
    tiles: Float[Tensor, "tile patch width"], there: Bool[Tensor, "image tile"]
) -> Float[Tensor, "image patch width"]:
    """Every image's patches, zero where it has no tile."""
    padded = tiles.new_zeros(*there.shape, *tiles.shape[1:])
    return padded.masked_scatter(there[..., None, None], tiles).flatten(1, 2)


def _tiles(model: LlavaNextForConditionalGeneration, images: dict[str, Tensor]) -> Bool[Tensor, "image tile"]:
    """Which tiles there are: the processor fills images of fewer tiles up with empty ones."""
    sides = (model.config.image_grid_pinpoints, model.config.vision_config.image_size)
    counts = torch.tensor([image_size_to_num_patches(size.tolist(), *sides) for size in images["image_sizes"]])
    return torch.arange(images["pixel_values"].shape[1]) < counts[:, None]


def forward(model: PreTrainedModel, batch: TrainingBatch) -> Forward:
    """Predictions at all labelled places."""
    patches, seen = see(model, batch.images)
    queries = None
    if batch.positions is not None:
        hidden = _packed(model, batch, seen)
    else:
        hidden, queries = _instructblip(model, batch, seen)
    places = batch.labels != IGNORED
    return Forward(model.get_output_embeddings()(hidden[places]).float(), batch.labels[places], patches, queries)


def _embed(model: PreTrainedModel, ids: Int[Tensor, "row token"], features: Tensor) -> Float[Tensor, "row token width"]:
    embedded = model.get_input_embeddings()(ids)
    image = (ids == model.config.image_token_id)[..., None]
    return embedded.masked_scatter(image, features.to(embedded.dtype))


def _packed(
    model: LlavaNextForConditionalGeneration | Idefics3ForConditionalGeneration, batch: TrainingBatch, features: Tensor
) -> Float[Tensor, "row token width"]:
    llava = isinstance(model, LlavaNextForConditionalGeneration)
    decoder = model.model.language_model if llava else model.model.text_model
    return decoder(
        inputs_embeds=_embed(model, batch.ids, features),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state


def _instructblip(
    model: InstructBlipForConditionalGeneration, batch: TrainingBatch, seen: Tensor
) -> tuple[Tensor, Tensor]:
    rows, queries = len(batch.ids), model.config.num_query_tokens
    asked = model.qformer(
        input_ids=batch.qformer_ids,
        attention_mask=torch.cat([batch.qformer_mask.new_ones(rows, queries), batch.qformer_mask], 1),
        query_embeds=model.query_tokens.expand(rows, -1, -1),
        encoder_hidden_states=seen[batch.image_of_row],
    ).last_hidden_state[:, :queries]
    hidden = model.language_model.model(
        inputs_embeds=_embed(model, batch.ids, model.language_projection(asked)),
        attention_mask=batch.mask,
        # Padding between image and text takes no positions, as in generation.
        position_ids=(batch.mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    return hidden, asked
