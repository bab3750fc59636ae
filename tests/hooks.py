"""Oracles: the same things done with plain torch hooks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def hooked(module: torch.nn.Module, hooks: dict[str, Callable[..., Any]]):
    """Forward hooks by module path: `hook(output)` returns a new output or None."""
    with ExitStack() as stack:
        for path, hook in hooks.items():
            handle = module.get_submodule(path).register_forward_hook(
                lambda _module, _inputs, output, hook=hook: hook(output)
            )
            stack.callback(handle.remove)
        yield


def outputs(module: torch.nn.Module, paths: list[str], run: Callable[[], Any]) -> dict[str, list[Tensor]]:
    """Every output of the modules at these paths while `run` runs."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    with torch.no_grad(), hooked(module, {path: (lambda out, path=path: seen[path].append(out)) for path in paths}):
        run()
    return seen


NEURON_PATHS = {
    "llava_next": {
        "vision.mlp.act": [f"model.vision_tower.encoder.layers.{layer}.mlp.activation_fn" for layer in range(3)],
        "projector.act": ["model.multi_modal_projector.act"],
        "llm.mlp.act": [f"model.language_model.layers.{layer}.mlp.act_fn" for layer in range(3)],
    },
    "instructblip": {
        "vision.mlp.act": [f"vision_model.encoder.layers.{layer}.mlp.activation_fn" for layer in range(3)],
        "qformer.query.act": [
            f"qformer.encoder.layer.{layer}.intermediate_query.intermediate_act_fn" for layer in range(2)
        ],
        "qformer.text.act": [f"qformer.encoder.layer.{layer}.intermediate.intermediate_act_fn" for layer in range(2)],
        "llm.mlp.act": [f"language_model.model.layers.{layer}.mlp.act_fn" for layer in range(3)],
    },
}
"""Module paths of the neurons, written out by hand for the tiny models."""


def neuron_paths(lens) -> dict[str, list[str]]:
    return NEURON_PATHS["llava_next" if lens.architecture.name == "LLaVA-NeXT" else "instructblip"]
