"""InstructBLIP: a ViT, a Q-Former that also reads the instruction, one linear layer, a language model."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import blip2
from mmneuron_lens.architectures.architecture import Architecture


def architecture(config: Any) -> Architecture:
    """From an `InstructBlipConfig`."""
    return blip2.queried(config, "InstructBLIP", instruction=True)
