"""Parts of tiny models of newer architectures: configurations, and processors built in code."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tiny_models import loud
from transformers import processing_utils

LAYERS, VISION_LAYERS = 3, 3
GRID = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": VISION_LAYERS,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
"""Sizes of a vision tower."""

PIXTRAL = {**TOWER, "image_size": 64}


def built(kind: str, config: Any) -> torch.nn.Module:
    """A model of this class, the same in every process."""
    # Some parameters are drawn by the class itself.
    torch.manual_seed(0)
    return loud(getattr(transformers, f"{kind}ForConditionalGeneration")(config))


def text_config(kind: str, vocabulary: int, **own: Any) -> Any:
    """A text configuration of this class with the sizes of all tiny models."""
    return getattr(transformers, kind)(
        **{
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,
            **own,
        }
    )


def sections(*lengths: int) -> dict[str, Any]:
    """Rotary parameters with a part of the frequencies for time, row and column each."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(lengths)}


class VideoProcessorMixin:
    """Stands for a video processor, which cannot be built without torchvision; pictures do not meet it."""

    model_input_names: tuple[str, ...] = ()
    temporal_patch_size, merge_size = 2, 2

    def to_dict(self) -> dict[str, Any]:
        return {}

    def __repr__(self) -> str:
        # A fingerprint shows it, and must not show where it lies in memory.
        return "VideoProcessorMixin()"


def processor_of(kind: str, image_processor: Any, words: Any, **own: Any) -> Any:
    """A processor of this class; one that wants a video processor is given the stand-in."""
    made = _pixtral_processor() if kind == "PixtralProcessor" else getattr(transformers, kind)
    if "video_processor" in made.get_attributes():
        # Where transformers looks for the class that it expects.
        known = SimpleNamespace(_extra_content={"video": VideoProcessorMixin})
        processing_utils.transformers_module.VIDEO_PROCESSOR_MAPPING = known
        own["video_processor"] = VideoProcessorMixin()
    return made(image_processor=image_processor, tokenizer=words, **own)


def _pixtral_processor() -> Any:
    """Its file asks for torchvision to have one function, which stands in the file for PIL too."""
    there = importlib.import_module("transformers.models.pixtral.image_processing_pil_pixtral")
    if importlib.util.find_spec("torchvision") is None:
        sys.modules["transformers.models.pixtral.image_processing_pixtral"] = there
    return importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor


def siglip(**own: Any) -> Any:
    return transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        **own,
    )


def clip() -> Any:
    return transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
