"""Architectures: one file each says where the named sites of its models lie."""

from __future__ import annotations

from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.architectures import (
    blip2,
    deepseek_vl,
    gemma3,
    glm4v,
    idefics3,
    instructblip,
    internvl,
    lighton_ocr,
    llava,
    llava_next,
    llava_onevision,
    mistral3,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    vipllava,
)
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.refused import refusal

ARCHITECTURES = {
    "llava_next": llava_next.architecture,
    "instructblip": instructblip.architecture,
    "llava": llava.architecture,
    "blip-2": blip2.architecture,
    "llava_onevision": llava_onevision.architecture,
    "qwen2_vl": qwen2_vl.architecture,
    "qwen2_5_vl": qwen2_5_vl.architecture,
    "qwen3_vl": qwen3_vl.architecture,
    "internvl": internvl.architecture,
    "gemma3": gemma3.architecture,
    "paligemma": paligemma.architecture,
    "idefics3": idefics3.architecture,
    "smolvlm": idefics3.architecture,
    "mistral3": mistral3.architecture,
    "glm4v": glm4v.architecture,
    "glm46v": glm4v.architecture,
    "deepseek_vl": deepseek_vl.architecture,
    "vipllava": vipllava.architecture,
    "llava_next_video": llava_next.architecture,
    "lighton_ocr": lighton_ocr.architecture,
    "qianfan_ocr": internvl.architecture,
}
"""Architectures by the configuration's `model_type`."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model from its configuration.

    Raises `InvalidValue` with the choices for a type that is refused, with the reason, or unknown.
    """
    if config.model_type not in ARCHITECTURES:
        raise InvalidValue(
            f"{refusal('architecture', config.model_type, ARCHITECTURES)} "
            "docs/adding-an-architecture.md says what it takes to add one; Lens(..., discover=True) and --discover "
            "look for its sites."
        )
    return ARCHITECTURES[config.model_type](config)


__all__ = ["ARCHITECTURES", "Architecture", "Place", "architecture_of"]
