"""Qwen2.5-VL: as Qwen2-VL, its tower attending inside windows, which it holds one after the other."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, qwen2_vl, vision
from mmneuron_lens.architectures.architecture import Architecture


def architecture(config: Any) -> Architecture:
    """From a `Qwen2_5_VLConfig`."""
    tower = config.vision_config
    merged = tower.spatial_merge_size
    return Architecture(
        name="Qwen2.5-VL",
        places=vision.places(tower, "model.visual")
        | qwen2_vl.merger(config, "mlp.1", tower.hidden_size * merged**2, (("ordered", merged**2), ("packed",)))
        | language.places(config.text_config, "model.language_model", "lm_head"),
        facts=qwen2_vl.own_facts(
            config, windows={"merged": merged, "window": tower.window_size // merged // tower.patch_size}
        ),
    )
