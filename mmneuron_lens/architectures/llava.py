"""LLaVA-1.5: CLIP or SigLIP on one square image, an MLP projector, a language model."""

from __future__ import annotations

from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts
from mmneuron_lens.wire.facts_types import Facts, Step


def architecture(config: Any) -> Architecture:
    """From a `LlavaConfig`."""
    return Architecture(
        name="LLaVA",
        places=vision.places(config.vision_config, "model.vision_tower", config.vision_feature_layer)
        | projector(config)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=own_facts(config),
    )


def projector(config: Any, steps: tuple[Step, ...] = ()) -> dict[str, Place]:
    """The two linear layers between vision and language, and the neurons between them."""
    hidden = config.text_config.hidden_size
    return {
        "projector.act": Place("model.multi_modal_projector.act", None, {"neuron": hidden}, view=steps),
        "projector.output": Place("model.multi_modal_projector", None, {"hidden": hidden}, view=steps),
    }


def own_facts(config: Any, **own: Any) -> Facts:
    """What laying out a batch needs. Raises `InvalidValue` for features that keep the CLS token."""
    if config.vision_config.model_type == "pixtral":
        return pixtral_facts(config)
    cls = vision.cls(config.vision_config)
    if cls:
        refuse_cls(config)
    elif config.vision_feature_select_strategy != "full":
        raise InvalidValue(
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} drops the first patch of a "
            "tower without a CLS token; only 'full' is supported."
        )
    return facts(
        config.text_config,
        image_token=config.image_token_index,
        **vision.tile(config.vision_config),
        cls=cls,
        **own,
    )


def pixtral_facts(config: Any, merged: int = 1) -> Facts:
    """The facts of a model with Pixtral's tower, whose patches are of all images in one row."""
    return facts(
        config.text_config,
        image_token=config.image_token_index,
        patches=0,
        patch_size=config.vision_config.patch_size,
        merged=merged,
        tiling="sizes",
        ending=("at", "[IMG_END]"),
    )


def refuse_cls(config: Any) -> None:
    """Raise `InvalidValue` for a model whose projector is given the CLS token."""
    if config.vision_feature_select_strategy != "default":
        raise InvalidValue(
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} keeps the CLS token; "
            "only 'default', as published, is supported."
        )
