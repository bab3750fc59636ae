"""Tiny random models of architectures that discovery is tried on, with processors built in code."""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers
from newer_models import glm46v, lighton_ocr, vipllava  # noqa: F401
from newer_parts import VISION_LAYERS, built, processor_of, siglip, text_config
from tiny_models import tokenizer


@cache
def aya_vision() -> tuple[Any, Any]:
    """SigLIP, pixel shuffle, a gated projector; Cohere 2, whose attention and MLP are beside each other."""
    more = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    more += tuple(f"TILE_{number}" for number in range(1, 6))
    words = tokenizer("<image>", *more, **{f"token_{number}": token for number, token in enumerate(more)})
    pixels = transformers.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    config = transformers.AyaVisionConfig(
        vision_config=siglip(vision_use_head=False),
        text_config=text_config("Cohere2Config", len(words), sliding_window=256),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    processor = processor_of("AyaVisionProcessor", pixels, words, patch_size=8, img_size=32, downsample_factor=2)
    return built("AyaVision", config), processor


@cache
def got_ocr2() -> tuple[Any, Any]:
    """A tower of Segment Anything on Qwen2; its processor wants its own prompts."""
    words = tokenizer(*("<imgpad>", "<img>", "</img>", "<|im_start|>", "<|im_end|>"), image_token="<imgpad>")
    pixels = transformers.GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}, crop_to_patches=False)
    config = transformers.GotOcr2Config(
        vision_config={
            "hidden_size": 16, "output_channels": 8, "num_hidden_layers": VISION_LAYERS, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "mlp_dim": 40, "window_size": 2, "global_attn_indexes": [1],
        },
        text_config=text_config("Qwen2Config", len(words)),
        image_token_index=words.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=4,
    )  # fmt: skip
    return built("GotOcr2", config), processor_of("GotOcr2Processor", pixels, words)
