"""Tiny random models of architectures that are near those of `newer_models`."""

from __future__ import annotations

from functools import cache

import transformers
from newer_parts import GRID, PIXTRAL, built, clip, processor_of, siglip, text_config
from tiny_models import tokenizer


@cache
def deepseek_vl():
    words = tokenizer("<image_placeholder>", image_token="<image_placeholder>")
    config = transformers.DeepseekVLConfig(
        vision_config=siglip(vision_use_head=False),
        text_config=text_config("LlamaConfig", len(words)),
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    pixels = transformers.DeepseekVLImageProcessorPil(size={"height": 32, "width": 32}, min_size=8)
    processor = processor_of("DeepseekVLProcessor", pixels, words, num_image_tokens=16)
    return built("DeepseekVL", config), processor


@cache
def vipllava():
    words = tokenizer("<image>", image_token="<image>")
    config = transformers.VipLlavaConfig(
        vision_config=clip(),
        text_config=text_config("LlamaConfig", len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layers=[-1, -2, 1],
    )
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = processor_of(
        *("LlavaProcessor", pixels, words),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return built("VipLlava", config), processor


@cache
def llava_siglip():
    words = tokenizer("<image>", image_token="<image>")
    config = transformers.LlavaConfig(
        vision_config=siglip(vision_use_head=False),
        text_config=text_config("Qwen2Config", len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    pixels = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = processor_of("LlavaProcessor", pixels, words, patch_size=8, vision_feature_select_strategy="full")
    return built("Llava", config), processor


@cache
def llava_next_video():
    words = tokenizer("<image>", "<video>", image_token="<image>", video_token="<video>")
    config = transformers.LlavaNextVideoConfig(
        vision_config=clip(),
        text_config=text_config("LlamaConfig", len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=GRID,
    )
    pixels = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=GRID
    )
    processor = processor_of(
        *("LlavaNextVideoProcessor", pixels, words),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return built("LlavaNextVideo", config), processor


@cache
def lighton_ocr():
    names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    words = tokenizer(*names.values(), **names)
    pixels = transformers.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16})
    config = transformers.LightOnOcrConfig(
        vision_config=transformers.PixtralVisionConfig(**PIXTRAL),
        text_config=text_config("Qwen3Config", len(words)),
        image_token_id=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    processor = processor_of("LightOnOcrProcessor", pixels, words, patch_size=8, spatial_merge_size=2)
    return built("LightOnOcr", config), processor
