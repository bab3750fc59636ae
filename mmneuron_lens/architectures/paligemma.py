"""PaliGemma: SigLIP on one square image, a linear projector, and a decoder in which all of a prompt sees all of it."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `PaliGemmaConfig`."""
    width = config.vision_config.projection_dim
    return Architecture(
        name="PaliGemma",
        places=vision.places(config.vision_config, "model.vision_tower")
        | {"projector.output": Place("model.multi_modal_projector", None, {"hidden": width})}
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_id,
            **vision.tile(config.vision_config),
            text_only=False,
            sees_ahead="prompt",
            vision_tower="model.vision_tower",
            # Of an answer, that it sees what is before it alone.
            token_ids={"token_type_ids": 1},
            first=1,
            around=("", ""),
        ),
    )
