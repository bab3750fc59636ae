"""ViP-LLaVA: LLaVA-1.5 whose projector reads several layers of CLIP, one beside the other."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, llava, vision
from mmneuron_lens.architectures.architecture import Architecture
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `VipLlavaConfig`."""
    return Architecture(
        name="ViP-LLaVA",
        places=vision.places(config.vision_config, "model.vision_tower", config.vision_feature_layers)
        | llava.projector(config)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_index,
            **vision.tile(config.vision_config),
            cls=1,
        ),
    )
