"""Configurations, processors and fresh weights of the embedded models: stock classes of transformers."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from transformers import (
    BlipImageProcessorPil,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Idefics3VisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from mmneuron_lens.corpora.prompts import ModelKind
from mmneuron_lens.embedded.train.tokenizer import language_tokenizer, qformer_tokenizer, tiled_tokenizer

Name = Literal["llava-next", "instructblip", "idefics3"]
NAMES: tuple[Name, ...] = get_args(Name)

PROMPTS: dict[Name, ModelKind] = {"llava-next": "llava-next", "instructblip": "instructblip", "idefics3": "llava-next"}
"""Which of the paper's two prompts each is asked with."""

TILE, PATCH = 64, 16
PINPOINTS = [[64, 128], [128, 64], [128, 128]]
WHOLE = 128
"""LLaVA-NeXT and Idefics3 see tiles of 64 pixels, InstructBLIP the whole image in 128 x 128; all in patches of 16."""

MERGED = 2
"""Idefics3 makes one position of 2 x 2 patches."""

QUERIES = 12
WIDTH, HEADS = 128, 4
VISION = dict(
    hidden_size=WIDTH, intermediate_size=416, num_hidden_layers=5, num_attention_heads=HEADS, patch_size=PATCH
)


def build(name: Name, seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """An untrained model and its processor; all weights are drawn at random from `seed`."""
    torch.manual_seed(seed)
    if name == "idefics3":
        return _idefics3(tiled_tokenizer())
    tokenizer = language_tokenizer(names_image_token=name == "llava-next")
    return _llava_next(tokenizer) if name == "llava-next" else _instructblip(tokenizer)


def _text_config(tokenizer: PreTrainedTokenizerFast, neurons: int = 512, key_heads: int = HEADS) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=neurons, num_hidden_layers=4,
        num_attention_heads=HEADS, num_key_value_heads=key_heads, hidden_act="silu", max_position_embeddings=2048,
        rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _idefics3(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Two key and value heads for four query heads, and narrower MLPs, so that float32 weights are under 8 MB."""
    images = Idefics3ImageProcessorPil(size={"longest_edge": WHOLE}, max_image_size={"longest_edge": TILE})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=(TILE // PATCH // MERGED) ** 2)
    vision = VISION | {"intermediate_size": 384, "num_hidden_layers": 4}
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**vision, image_size=TILE),
        text_config=_text_config(tokenizer, neurons=448, key_heads=2), scale_factor=MERGED,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _finish(Idefics3ForConditionalGeneration(config), tokenizer), processor


def _llava_next(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, ProcessorMixin]:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=TILE, projection_dim=WIDTH, hidden_act="quick_gelu"),
        text_config=_text_config(tokenizer), image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-2, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", tie_word_embeddings=False,
    )  # fmt: skip
    return _finish(LlavaNextForConditionalGeneration(config), tokenizer), processor


def _instructblip(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, ProcessorMixin]:
    instruction = qformer_tokenizer()
    images = BlipImageProcessorPil(size={"height": WHOLE, "width": WHOLE})
    processor = InstructBlipProcessor(images, tokenizer, instruction, num_query_tokens=QUERIES)
    qformer = InstructBlipQFormerConfig(
        vocab_size=len(instruction), hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
        intermediate_size=256, hidden_act="gelu",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=512,
        pad_token_id=instruction.pad_token_id, cross_attention_frequency=2, encoder_hidden_size=WIDTH,
    )  # fmt: skip
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION, image_size=WHOLE, hidden_act="gelu", initializer_range=0.02),
        qformer_config=qformer, text_config=_text_config(tokenizer), num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = InstructBlipForConditionalGeneration(config)
    # Queries that are all zero would stay equal to one another: transformers expects them from BLIP-2's first stage.
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    return _finish(model, tokenizer), processor


def _finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    return model.train()
