"""Mistral 3 (Mistral Small 3.1): Pixtral's tower on images of any size, patches merged, an MLP projector."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, llava, vision
from mmneuron_lens.architectures.architecture import Architecture


def architecture(config: Any) -> Architecture:
    """From a `Mistral3Config`."""
    return Architecture(
        name="Mistral 3",
        places=vision.places(config.vision_config, "model.vision_tower", config.vision_feature_layer)
        | llava.projector(config, vision.PACKED)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=llava.pixtral_facts(config, merged=config.spatial_merge_size**2),
    )
