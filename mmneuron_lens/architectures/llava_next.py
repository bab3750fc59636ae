"""LLaVA-NeXT (llava-v1.6), and LLaVA-NeXT-Video on pictures: CLIP on anyres tiles, an MLP projector."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, llava, vision
from mmneuron_lens.architectures.architecture import Architecture


def architecture(config: Any) -> Architecture:
    """From a `LlavaNextConfig` or a `LlavaNextVideoConfig`."""
    return Architecture(
        name="LLaVA-NeXT-Video" if config.model_type == "llava_next_video" else "LLaVA-NeXT",
        places=vision.places(config.vision_config, "model.vision_tower", config.vision_feature_layer)
        | llava.projector(config)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=llava.own_facts(
            config,
            tiling="anyres",
            grid_pinpoints=config.image_grid_pinpoints,
            tile_size=config.vision_config.image_size,
        ),
    )
