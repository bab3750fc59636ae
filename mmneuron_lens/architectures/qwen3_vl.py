"""Qwen3-VL: as Qwen2-VL, with projectors inside the tower whose outputs are added to the first decoder layers."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, qwen2_vl, vision
from mmneuron_lens.architectures.architecture import Architecture, Place


def architecture(config: Any) -> Architecture:
    """From a `Qwen3VLConfig`.

    The residual of a decoder layer does not hold what is added behind it.
    """
    tower = config.vision_config
    neurons = tower.hidden_size * tower.spatial_merge_size**2
    deep = Place(
        "model.visual.deepstack_merger_list.{l}.act_fn",
        len(tower.deepstack_visual_indexes),
        {"neuron": neurons},
        view=vision.PACKED,
    )
    return Architecture(
        name="Qwen3-VL",
        places=vision.places(tower, "model.visual")
        | {"projector.deep.act": deep}
        | qwen2_vl.merger(config, "act_fn", neurons)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=qwen2_vl.own_facts(config),
    )
