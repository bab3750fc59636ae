"""Tiny random models of newer architectures in the stock transformers classes, with processors built in code."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import transformers
from further_models import deepseek_vl, lighton_ocr, llava_next_video, llava_siglip, vipllava  # noqa: F401
from newer_parts import (  # noqa: F401
    GRID,
    LAYERS,
    PIXTRAL,
    TOWER,
    VISION_LAYERS,
    built,
    processor_of,
    sections,
    siglip,
    text_config,
)
from tiny_models import tokenizer


def _qwen_processor(kind: str, words: Any, patch_size: int = 8) -> Any:
    pixels = transformers.Qwen2VLImageProcessorPil(
        patch_size=patch_size, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=64 * 64
    )
    return processor_of(kind, pixels, words)


def _qwen_words() -> Any:
    return tokenizer(
        "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", image_token="<|image_pad|>"
    )


def _qwen_ids(words: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: words.convert_tokens_to_ids(token) for name, token in names.items()}


@cache
def qwen2_vl():
    words = _qwen_words()
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": VISION_LAYERS,
            "embed_dim": 16,
            "num_heads": 2,
            "mlp_ratio": 3,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "hidden_size": 32,
        },
        text_config=text_config("Qwen2VLTextConfig", len(words), rope_parameters=sections(2, 1, 1)).to_dict(),
        **_qwen_ids(words),
    )
    return built("Qwen2VL", config), _qwen_processor("Qwen2VLProcessor", words)


@cache
def qwen2_5_vl():
    words = _qwen_words()
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config=text_config("Qwen2_5_VLTextConfig", len(words), rope_parameters=sections(2, 1, 1)).to_dict(),
        **_qwen_ids(words),
    )
    return built("Qwen2_5_VL", config), _qwen_processor("Qwen2_5_VLProcessor", words)


@cache
def qwen3_vl():
    words = _qwen_words()
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config=text_config("Qwen3VLTextConfig", len(words), rope_parameters=sections(2, 1, 1)).to_dict(),
        **_qwen_ids(words),
    )
    return built("Qwen3VL", config), _qwen_processor("Qwen3VLProcessor", words)


@cache
def glm4v():
    words = tokenizer(
        *("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
        *("<|begin_of_video|>", "<|end_of_video|>"),
        image_token="<|image|>",
    )
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    config = transformers.Glm4vConfig(
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_heads": 2,
            "patch_size": 8,
            "image_size": 32,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
        },
        text_config=text_config("Glm4vTextConfig", len(words), rope_parameters=sections(2, 1, 1)).to_dict(),
        **{name: words.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    pixels = transformers.Glm4vImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16 * 2, "longest_edge": 64 * 64 * 2},
    )
    return built("Glm4v", config), processor_of("Glm4vProcessor", pixels, words)


@cache
def internvl():
    words = tokenizer(
        *("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = transformers.InternVLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [8, 8],
            "layer_scale_init_value": 0.5,
        },
        text_config=text_config("Qwen2Config", len(words)).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    pixels = transformers.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = processor_of("InternVLProcessor", pixels, words, image_seq_length=4)
    return built("InternVL", config), processor


@cache
def llava_onevision():
    words = tokenizer("<image>", "<video>", image_token="<image>", video_token="<video>")
    config = transformers.LlavaOnevisionConfig(
        vision_config=siglip(vision_use_head=False),
        text_config=text_config("Qwen2Config", len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID,
        vision_aspect_ratio="anyres_max_2",
    )
    pixels = transformers.LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=GRID)
    processor = processor_of(
        *("LlavaOnevisionProcessor", pixels, words),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    return built("LlavaOnevision", config), processor


@cache
def gemma3():
    words = tokenizer(
        *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    config = transformers.Gemma3Config(
        vision_config=siglip(vision_use_head=False),
        text_config=text_config(
            *("Gemma3TextConfig", len(words)),
            sliding_window=256,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=8,
        ),
        mm_tokens_per_image=4,
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
    )
    pixels = transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, do_pan_and_scan=False)
    processor = processor_of("Gemma3Processor", pixels, words, image_seq_length=4)
    return built("Gemma3", config), processor


def paligemma_on(kind: str, **own: Any):
    words = tokenizer("<image>", image_token="<image>")
    pixels = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pixels.image_seq_length = 16
    processor = processor_of("PaliGemmaProcessor", pixels, words)
    config = transformers.PaliGemmaConfig(
        vision_config=siglip(vision_use_head=False, projection_dim=32),
        text_config=text_config(kind, len(words), **own),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return built("PaliGemma", config), processor


@cache
def paligemma():
    return paligemma_on("GemmaConfig")


@cache
def paligemma2():
    return paligemma_on("Gemma2Config", sliding_window=256, query_pre_attn_scalar=8)


def _idefics(kind: str, vision: dict[str, Any], pixels: Any):
    words = tokenizer(
        *("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
        *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
        video_token="<video>",
    )
    processor = processor_of(f"{kind}Processor", pixels, words, image_seq_len=4)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config=text_config("LlamaConfig", len(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return built(kind, config), processor


@cache
def idefics3():
    pixels = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return _idefics("Idefics3", TOWER, pixels)


@cache
def smolvlm():
    words = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
    # Numbers in words, for the times of videos alone.
    words.num2words = words.num2words or str
    pixels = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return _idefics("SmolVLM", TOWER, pixels)


def _pixtral(name: str, merged: int, **own: Any):
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    pixels = transformers.PixtralImageProcessorPil(
        size={"longest_edge": 64}, patch_size={"height": 8 * merged, "width": 8 * merged}
    )
    processor = processor_of("PixtralProcessor", pixels, words, patch_size=8, spatial_merge_size=merged)
    config = getattr(transformers, f"{name}Config")(
        vision_config=transformers.PixtralVisionConfig(**PIXTRAL),
        text_config=text_config("MistralConfig", len(words), sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        **own,
    )
    return built(name, config), processor


@cache
def mistral3():
    return _pixtral("Mistral3", 2, spatial_merge_size=2)


@cache
def pixtral():
    return _pixtral("Llava", 1, vision_feature_select_strategy="full")


@cache
def glm46v():
    module, own = glm4v()
    words = own.tokenizer
    config = {**module.config.to_dict(), "model_type": "glm46v"}
    pixels = transformers.Glm46VImageProcessorPil(**own.image_processor.to_dict())
    processor = processor_of("Glm46VProcessor", pixels, words)
    made = built("Glm46V", transformers.Glm46VConfig(**config))
    return made, processor


@cache
def qianfan_ocr():
    module, own = internvl()
    config = module.config.to_dict()
    config["vision_config"]["model_type"] = "qianfan_ocr_vision"
    made = built("QianfanOCR", transformers.QianfanOCRConfig(**config))
    return made, own


_SIGLIP = "model.vision_tower.encoder.layers.{l}.mlp.activation_fn"
_QWEN = "model.visual.blocks.{l}.mlp.act_fn"
_LLM = "model.language_model.layers.{l}.mlp.act_fn"
_PROJECTOR = "model.multi_modal_projector.act"

ARCHITECTURES: dict[str, tuple[str, str, str, str]] = {
    "qwen2_vl": ("model.visual.blocks.{l}.mlp.act", "model.visual.merger.mlp.1", "", _LLM),
    "qwen2_5_vl": (_QWEN, "model.visual.merger.mlp.1", "", _LLM),
    "qwen3_vl": (_QWEN, "model.visual.merger.act_fn", "model.visual.deepstack_merger_list.{l}.act_fn", _LLM),
    "glm4v": (
        *(_QWEN, "model.visual.merger.act_fn", ""),
        "model.language_model.layers.{l}.mlp.activation_fn",
    ),
    "internvl": ("model.vision_tower.encoder.layer.{l}.mlp.activation_fn", _PROJECTOR, "", _LLM),
    "llava_onevision": (_SIGLIP, _PROJECTOR, "", _LLM),
    "gemma3": (_SIGLIP, "", "", _LLM),
    "paligemma": (_SIGLIP, "", "", _LLM),
    "paligemma2": (_SIGLIP, "", "", _LLM),
    "idefics3": (
        "model.vision_model.encoder.layers.{l}.mlp.activation_fn",
        *("", ""),
        "model.text_model.layers.{l}.mlp.act_fn",
    ),
    "smolvlm": (
        "model.vision_model.encoder.layers.{l}.mlp.activation_fn",
        *("", ""),
        "model.text_model.layers.{l}.mlp.act_fn",
    ),
    "mistral3": ("model.vision_tower.transformer.layers.{l}.feed_forward.act_fn", _PROJECTOR, "", _LLM),
    "pixtral": ("model.vision_tower.transformer.layers.{l}.feed_forward.act_fn", _PROJECTOR, "", _LLM),
    "glm46v": (
        *(_QWEN, "model.visual.merger.act_fn", ""),
        "model.language_model.layers.{l}.mlp.activation_fn",
    ),
    "qianfan_ocr": ("model.vision_tower.layers.{l}.mlp.activation_fn", _PROJECTOR, "", _LLM),
    "deepseek_vl": (
        *("model.vision_model.encoder.layers.{l}.mlp.activation_fn", "model.aligner.activation", ""),
        _LLM,
    ),
    "vipllava": (_SIGLIP, _PROJECTOR, "", _LLM),
    "llava_siglip": (_SIGLIP, _PROJECTOR, "", _LLM),
    "llava_next_video": (_SIGLIP, _PROJECTOR, "", _LLM),
    "lighton_ocr": (
        *("model.vision_encoder.transformer.layers.{l}.feed_forward.act_fn", "model.vision_projection.act", ""),
        _LLM,
    ),
}
"""Where the neurons of the vision tower, the projector, projectors inside the tower and the language model lie."""

if transformers.__version__.startswith("5.20."):
    # Its own forward folds the image positions by the patch size, and fails where they are no multiple of it.
    del ARCHITECTURES["smolvlm"]
