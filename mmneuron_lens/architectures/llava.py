"""LLaVA-1.5: CLIP on one square image, an MLP projector, a language model."""

from __future__ import annotations

from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.architectures import language, sharing, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.wire.types import Facts


def architecture(config: Any) -> Architecture:
    """From a `LlavaConfig`."""
    return Architecture(
        name="LLaVA",
        places=vision.places(config.vision_config, "model.vision_tower", config.vision_feature_layer)
        | projector(config)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(config),
    )


def projector(config: Any) -> dict[str, Place]:
    """The two linear layers between vision and language, and the neurons between them."""
    hidden = config.text_config.hidden_size
    return {
        "projector.act": Place("model.multi_modal_projector.act", None, {"neuron": hidden}),
        "projector.output": Place("model.multi_modal_projector", None, {"hidden": hidden}),
    }


def facts(config: Any) -> Facts:
    """What laying out a batch needs. Raises `ValueError` for features that keep the CLS token."""
    if config.vision_feature_select_strategy != "default":
        raise InvalidValue(
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} keeps the CLS token; "
            "only 'default', as published, is supported."
        )
    return {
        "image_token": config.image_token_index,
        "images_in_text": True,
        "text_only": True,
        "patches": vision.patches(config.vision_config),
        "queries": 0,
        "sharable": sharing.sharable(config.text_config),
    }
