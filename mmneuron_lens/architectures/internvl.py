"""InternVL, Qianfan-OCR: several tiles of an image one after the other, patches merged two by two, an MLP projector."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, llava, vision
from mmneuron_lens.architectures.architecture import Architecture
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From an `InternVLConfig` or a `QianfanOCRConfig`. Raises `InvalidValue` for features that keep the CLS token."""
    llava.refuse_cls(config)
    return Architecture(
        name="Qianfan-OCR" if config.model_type == "qianfan_ocr" else "InternVL",
        places=vision.places(config.vision_config, "model.vision_tower", config.vision_feature_layer)
        | llava.projector(config)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_id,
            **vision.tile(config.vision_config),
            cls=1,
            merged=round(1 / config.downsample_ratio) ** 2,
            tiling="several",
        ),
    )
