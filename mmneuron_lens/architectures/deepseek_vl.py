"""DeepSeek-VL: SigLIP on one square image, an MLP between vision and a Llama."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `DeepseekVLConfig`."""
    hidden = config.text_config.hidden_size
    return Architecture(
        name="DeepSeek-VL",
        places=vision.places(config.vision_config, "model.vision_model")
        | {
            "projector.act": Place("model.aligner.activation", None, {"neuron": hidden}),
            "projector.output": Place("model.aligner", None, {"hidden": hidden}),
        }
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_id,
            **vision.tile(config.vision_config),
        ),
    )
