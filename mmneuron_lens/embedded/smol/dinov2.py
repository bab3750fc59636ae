"""DINOv2-small out of an ONNX file: the weights of its backbone, under the names of transformers' `Dinov2Model`.

An exported linear layer is a MatMul whose weight has a number for a name, followed by an Add of a bias that has kept
its own. So a weight is known by the bias that is added to its product; it is stored transposed.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from interventions.errors import InvalidValue
from mmneuron_lens.extras import needed

PREFIX = "backbone."
RENAMED = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)
"""Names of older transformers, with which the file was exported, and those of the installed one."""

HEAD_DIMENSION = 64
"""Every published DINOv2 has heads of this size; a file holds no number of heads."""


class PartError(InvalidValue):
    """A file is not the part it should be; the message names it, what was missed, and what to do."""


def read_dinov2(file: str | Path, tile: int) -> Dinov2Model:
    """The DINOv2 in an ONNX file, float32, for tiles of `tile` pixels.

    The position embeddings are resampled once, by `resample`, to the patches of a tile. Raises `PartError` when the
    file lacks a weight of the backbone or `tile` is no multiple of the patch size, `ImportError` without `onnx`.
    """
    state = backbone(file)
    patch = state["embeddings.patch_embeddings.projection.weight"].shape[-1]
    if tile % patch:
        raise PartError(f"tiles of {tile} pixels do not hold whole patches of {patch}; choose a multiple of {patch}.")
    side = tile // patch
    state["embeddings.position_embeddings"] = resample(state["embeddings.position_embeddings"], side)
    hidden = state["layernorm.weight"].shape[0]
    layers = 1 + max(int(found[1]) for name in state if (found := re.match(r"encoder\.layer\.(\d+)\.", name)))
    config = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // HEAD_DIMENSION),
        mlp_ratio=state["encoder.layer.0.mlp.fc1.weight"].shape[0] // hidden,
        image_size=tile,
        patch_size=patch,
        use_mask_token=False,
    )
    model = Dinov2Model(config)
    missing, extra = model.load_state_dict(state, strict=False)
    if missing or extra:
        raise PartError(f"{file}: the backbone lacks {missing or 'nothing'} and has {extra or 'nothing'} besides.")
    return model.eval()


def backbone(file: str | Path) -> dict[str, Tensor]:
    """The tensors of the backbone by the names of `Dinov2Model`, linear weights as `[out, in]`."""
    onnx = needed("onnx", "the smol model")
    graph = onnx.load(str(file)).graph
    held = {one.name: one for one in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    state: dict[str, Tensor] = {}

    def take(name: str, initializer: str, turned: bool = False) -> None:
        value = torch.from_numpy(onnx.numpy_helper.to_array(held[initializer]).copy())
        state[_renamed(name)] = value.T.contiguous() if turned else value

    for name in held:
        if name.startswith(PREFIX):
            take(name, name)
    for node in graph.node:
        if node.op_type == "Add":
            bias = next((name for name in node.input if name.startswith(PREFIX) and name.endswith(".bias")), None)
            product = next((products[name] for name in node.input if name in products), None)
            if bias is not None and product is not None and product in held:
                take(bias.removesuffix("bias") + "weight", product, turned=True)
    state["embeddings.position_embeddings"] = torch.cat([*_positions(file, graph, held, onnx)], dim=1)
    return state


def resample(positions: Tensor, side: int) -> Tensor:
    """Position embeddings `[1, 1 + n * n, hidden]` for `side * side` patches: bicubic, the first one kept."""
    first, grid = positions[:, :1], positions[:, 1:]
    old = int(grid.shape[1] ** 0.5)
    if old == side:
        return positions
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], dim=1)


def _positions(file: str | Path, graph, held, onnx) -> list[Tensor]:
    """The exporter split the position embeddings in two constants: the CLS token's, and the grid that is resized."""
    hidden = held[f"{PREFIX}layernorm.weight"].dims[0]
    found = [one for one in graph.initializer if not one.name.startswith(PREFIX) and len(one.dims) == 3]
    first = [one for one in found if list(one.dims) == [1, 1, hidden]]
    grid = [one for one in found if one.dims[0] == 1 and one.dims[1] > 1 and one.dims[2] == hidden]
    if len(first) != 1 or len(grid) != 1:
        raise PartError(f"{file}: {len(first)} and {len(grid)} constants look like position embeddings, not 1 and 1.")
    return [torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in (first[0], grid[0])]


def _renamed(name: str) -> str:
    name = name.removeprefix(PREFIX)
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name
