"""Gemma 3: SigLIP on one square image, patches pooled, a decoder in which positions of an image see each other."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `Gemma3Config`."""
    tile = vision.tile(config.vision_config)
    return Architecture(
        name="Gemma 3",
        places=vision.places(config.vision_config, "model.vision_tower")
        | {"projector.output": Place("model.multi_modal_projector", None, {"hidden": config.text_config.hidden_size})}
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_id,
            **tile,
            merged=tile["patches"] // config.mm_tokens_per_image,
            nested=True,
            sees_ahead="image",
            token_ids={"token_type_ids": 0},
        ),
    )
