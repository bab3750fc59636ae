"""How much arithmetic counting needs at least: positions that must be computed, and their matrix products."""

from __future__ import annotations

from itertools import pairwise

import torch
from PIL import Image

from mmneuron_lens import Lens


def needed(lens: Lens, image: Image.Image, questions: list[str]) -> tuple[float, int]:
    """Floating-point operations and language model positions for the questions of one image (LLaVA-NeXT).

    Two operations for each weight of a linear layer and position, four for each pair of positions that may attend, head
    and dimension. The image passes the vision tower once, the common prefix the language model once, each question
    behind it meets the prefix and itself alone; no logits.
    """
    batch = lens.pack([([image], questions)], cut=False)
    positions, weight = batch.inputs["position_ids"][0].tolist(), batch.fields["llm"]["weight"][0].tolist()
    prefix = len(weight) if len(questions) == 1 else weight.count(len(questions))
    starts = [place for place in range(prefix, len(weight)) if positions[place] == prefix]
    lengths = [end - start for start, end in pairwise([*starts, len(weight)])]
    pairs = prefix * (prefix + 1) / 2 + sum(length * prefix + length * (length + 1) / 2 for length in lengths)
    text = lens.module.config.get_text_config()
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    model = lens.module.model
    language = 2 * linear(model.language_model) * len(weight) + 4 * text.num_hidden_layers * width * pairs
    return language + vision(lens, batch.fields["vision"]["weight"].shape), len(weight)


def vision(lens: Lens, shape: torch.Size) -> float:
    """Operations of the vision tower and the projector; shape: its tiles, and positions of a tile."""
    tiles, tokens = shape
    config, model = lens.module.config.vision_config, lens.module.model
    once = 2 * linear(model.vision_tower) * tokens + 4 * config.num_hidden_layers * config.hidden_size * tokens**2
    patches = 2 * sum(m.weight.numel() for m in model.vision_tower.modules() if isinstance(m, torch.nn.Conv2d))
    return tiles * (once + (patches + 2 * linear(model.multi_modal_projector)) * (tokens - 1))


def linear(module: torch.nn.Module) -> int:
    """Weights of all linear layers."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, torch.nn.Linear))
