"""LLaVA-NeXT (llava-v1.6): CLIP on anyres tiles, an MLP projector, a language model."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, llava, vision
from mmneuron_lens.architectures.architecture import Architecture


def architecture(config: Any) -> Architecture:
    """From a `LlavaNextConfig`."""
    return Architecture(
        name="LLaVA-NeXT",
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
