"""GLM-4V (4.1V, 4.6V-Flash): all patches in one row of the tower, merged by a convolution, positions in three axes."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, qwen2_vl, vision
from mmneuron_lens.architectures.architecture import Architecture


def architecture(config: Any) -> Architecture:
    """From a `Glm4vConfig` or a `Glm46VConfig`.

    `projector.act` is the gated activation of the merger; one before it, behind a norm (`act1`), has no site.
    """
    return Architecture(
        name="GLM-4.6V" if config.model_type == "glm46v" else "GLM-4V",
        places=vision.places(config.vision_config, "model.visual")
        | qwen2_vl.merger(config, "act_fn", config.vision_config.intermediate_size)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=qwen2_vl.own_facts(config, around=("<|begin_of_image|>", "<|end_of_image|>")),
    )
