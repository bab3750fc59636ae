"""Idefics3 and SmolVLM: tiles of an image with words between them, patches merged, a linear connector."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From an `Idefics3Config` or a `SmolVLMConfig`."""
    return Architecture(
        name="SmolVLM" if config.model_type == "smolvlm" else "Idefics3",
        places=vision.places(config.vision_config, "model.vision_model")
        | {"projector.output": Place("model.connector", None, {"hidden": config.text_config.hidden_size})}
        | language.places(config.text_config, "model.text_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_id,
            **vision.tile(config.vision_config),
            merged=config.scale_factor**2,
            nested=True,
            ending=("behind", "<global-img>"),
            tiling="several",
        ),
    )
