"""LightOnOCR: Pixtral's tower on images of any size, patches merged, an MLP projector, a Qwen3."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `LightOnOcrConfig`."""
    hidden = config.text_config.hidden_size
    return Architecture(
        name="LightOnOCR",
        places=vision.places(config.vision_config, "model.vision_encoder")
        | {
            "projector.act": Place("model.vision_projection.act", None, {"neuron": hidden}, view=vision.PACKED),
            "projector.output": Place("model.vision_projection", None, {"hidden": hidden}, view=vision.PACKED),
        }
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_id,
            patches=0,
            patch_size=config.vision_config.patch_size,
            merged=config.spatial_merge_size**2,
            tiling="sizes",
        ),
    )
