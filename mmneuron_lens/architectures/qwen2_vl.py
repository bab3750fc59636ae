"""Qwen2-VL: patches of all images in one row of the tower, merged two by two, positions in three axes."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts
from mmneuron_lens.wire.facts_types import Facts, Step


def architecture(config: Any) -> Architecture:
    """From a `Qwen2VLConfig`."""
    neurons = config.vision_config.embed_dim * config.vision_config.spatial_merge_size**2
    return Architecture(
        name="Qwen2-VL",
        places=vision.places(config.vision_config, "model.visual")
        | merger(config, "mlp.1", neurons)
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=own_facts(config),
    )


def merger(config: Any, act: str, neurons: int, steps: tuple[Step, ...] = vision.PACKED) -> dict[str, Place]:
    """What merges patches and projects them; `act` is its activation function."""
    hidden = config.text_config.hidden_size
    return {
        "projector.act": Place(f"model.visual.merger.{act}", None, {"neuron": neurons}, view=steps),
        "projector.output": Place("model.visual.merger", None, {"hidden": hidden}, view=steps),
    }


def own_facts(config: Any, **own: Any) -> Facts:
    """The facts of Qwen2-VL and those after it."""
    given = {
        "image_token": config.image_token_id,
        "patches": 0,
        "patch_size": config.vision_config.patch_size,
        "merged": config.vision_config.spatial_merge_size**2,
        "tiling": "grid",
        "positions": "grid",
        "token_ids": {"mm_token_type_ids": 0},
        "around": ("<|vision_start|>", "<|vision_end|>"),
    }
    return facts(config.text_config, **(given | own))
