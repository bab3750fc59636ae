"""LLaVA-NeXT from parts: a DINOv2, a Llama and a connector in one stock `LlavaNextForConditionalGeneration`.

Tiles have 56 pixels, so 4 x 4 patches; an image becomes a base tile and two to four anyres tiles, 34 to 88 positions of
the language model. The projector reads the last layer's output, before DINOv2's final norm, without the CLS token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Dinov2Model,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import read_artifact, write_artifact
from mmneuron_lens.embedded.smol.smollm2 import IMAGE_TOKEN

TILE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""ImageNet's, with which DINOv2 was trained."""

KIND = "connector"
NEWLINE = "image_newline"


def join(
    vision: Dinov2Model, language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pinpoints: Any = None
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """The model, float32, and its processor; the connector is drawn at random.

    pinpoints: sizes an image may be cut to, `[[height, width], ...]` in pixels, by default twice the tile at most. The
    vocabulary gets one row more, for `<image>`: the mean of the others, which no other token is near.
    """
    tile, patch = int(vision.config.image_size), int(vision.config.patch_size)  # type: ignore[arg-type]
    pinpoints = pinpoints or [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]]
    image_token: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    text = language.config.to_dict() | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = LlavaNextConfig(
        vision_config=vision.config.to_dict(),
        text_config=text,
        image_token_index=image_token,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(tile // patch) ** 2,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    model = LlavaNextForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    state = language.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            more = len(tokenizer) - len(state[name])
            state[name] = torch.cat([state[name], state[name].mean(0, keepdim=True).expand(more, -1)])
    model.model.language_model.load_state_dict(
        {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    )
    if not config.tie_word_embeddings:
        model.lm_head.weight.data.copy_(state["lm_head.weight"])
    model.tie_weights()
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    return model.eval(), _processor(tokenizer, tile, patch, pinpoints)


def _processor(tokenizer: PreTrainedTokenizerFast, tile: int, patch: int, pinpoints: Any) -> LlavaNextProcessor:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=pinpoints,
        image_mean=MEAN,
        image_std=DEVIATION,
    )
    return LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def connector(model: LlavaNextForConditionalGeneration) -> dict[str, Tensor]:
    """The tensors between vision and language: the projector's two layers, and the newline of anyres rows."""
    return {**model.model.multi_modal_projector.state_dict(), NEWLINE: model.model.image_newline.data}


def save_connector(model: LlavaNextForConditionalGeneration, file: str | Path, metadata: dict[str, Any]) -> None:
    """Write the connector as an artifact of the kind "connector", float32."""
    write_artifact(file, KIND, {name: value.float() for name, value in connector(model).items()}, metadata)


def load_connector(model: LlavaNextForConditionalGeneration, file: str | Path) -> dict[str, Any]:
    """Put a connector into a model and return its metadata. Raises `ValueError` when it is of another shape."""
    tensors, metadata = read_artifact(file, KIND)
    for name, own in connector(model).items():
        if name not in tensors or tensors[name].shape != own.shape:
            found = list(tensors[name].shape) if name in tensors else "absent"
            raise InvalidValue(f"{file}: {name} is {found}, but this model's is {list(own.shape)}; train its own.")
        own.copy_(tensors[name])
    return metadata
