"""LLaVA-OneVision: SigLIP on anyres tiles whose grid is made smaller where it is large, an MLP projector."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, llava, vision
from mmneuron_lens.architectures.architecture import Architecture
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `LlavaOnevisionConfig`."""
    return Architecture(
        name="LLaVA-OneVision",
        places=vision.places(config.vision_config, "model.vision_tower", config.vision_feature_layer)
        | llava.projector(config)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_id,
            **vision.tile(config.vision_config),
            nested=True,
            tiling="anyres",
            grid_pinpoints=config.image_grid_pinpoints,
            tile_size=config.vision_config.image_size,
        ),
    )
