"""Vision towers: where their sites lie, by model type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from interventions.errors import InvalidValue
from mmneuron_lens.architectures.architecture import Place
from mmneuron_lens.architectures.refused import refusal
from mmneuron_lens.wire.facts_types import Step

_EAGER = "the weights are returned beside the output, not used again; write vision.attention.z"


@dataclass(frozen=True)
class Tower:
    """How a family names its modules, and what shape it holds.

    - layer: of the tower, with `{l}`; attention and mlp lie in it
    - query: of separate projections the first, with `q` for `k` and `v`; or the one in which all three are fused
    - out: in attention, what mixes the heads
    - act, down: in the MLP, the activation function, and what takes its neurons
    - steps: from what the tower holds to rows of patches
    - pattern: whether attention returns its weights
    - pooled: whether the tower returns a pooled embedding that nothing reads
    """

    layer: str = "encoder.layers.{l}"
    attention: str = "self_attn"
    query: str = "q_proj"
    out: str = "out_proj"
    mlp: str = "mlp"
    act: str = "activation_fn"
    down: str = "fc2"
    steps: tuple[Step, ...] = ()
    pattern: bool = True
    pooled: bool = False


@dataclass(frozen=True)
class Sizes:
    """Of a tower: width of the residual stream, heads, neurons of a layer, layers."""

    hidden: int
    heads: int
    neurons: int
    layers: int


PACKED: tuple[Step, ...] = (("packed",),)
"""Of what holds the patches of all images in one row: a tower, or the projector behind it."""

TOWERS: dict[str, Tower] = {
    "clip_vision_model": Tower(pooled=True),
    "siglip_vision_model": Tower(),
    "idefics3_vision": Tower(),
    "smolvlm_vision": Tower(),
    "instructblip_vision_model": Tower(query="qkv", out="projection", pooled=True),
    "blip_2_vision_model": Tower(query="qkv", out="projection", pooled=True),
    "dinov2": Tower(layer="encoder.layer.{l}", attention="attention", out="o_proj", pooled=True),
    "internvl_vision": Tower(layer="encoder.layer.{l}", attention="attention", out="projection_layer"),
    "qianfan_ocr_vision": Tower(layer="layers.{l}", attention="attention", out="projection_layer"),
    "pixtral": Tower(
        layer="transformer.layers.{l}",
        attention="attention",
        out="o_proj",
        mlp="feed_forward",
        act="act_fn",
        down="down_proj",
    ),
    "qwen2_vl_vision": Tower("blocks.{l}", "attn", "qkv", "proj", act="act", steps=PACKED, pattern=False),
    "qwen2_5_vl_vision": Tower(
        *("blocks.{l}", "attn", "qkv", "proj"),
        act="act_fn",
        down="down_proj",
        steps=(("ordered", 1), *PACKED),
        pattern=False,
    ),
    "qwen3_vl_vision": Tower(
        "blocks.{l}", "attn", "qkv", "proj", act="act_fn", down="linear_fc2", steps=PACKED, pattern=False
    ),
    "glm4v_vision": Tower(
        "blocks.{l}", "attn", "qkv", "proj", act="act_fn", down="down_proj", steps=PACKED, pattern=False
    ),
}
"""By model type."""


def places(config: Any, base: str, read_at: int | list[int] | None = None) -> dict[str, Place]:
    """Sites of a vision tower at `base`. `read_at` is `vision_feature_layer`: deeper layers are marked dead.

    Raises `InvalidValue` for a model type that is refused or not known, with those that are.
    """
    if config.model_type not in TOWERS:
        raise InvalidValue(refusal("vision tower", config.model_type, TOWERS))
    tower, sizes = TOWERS[config.model_type], sizes_of(config)
    if getattr(config, "use_swiglu_ffn", False):
        tower = replace(tower, act="act_fn", down="down_proj")
    layer = f"{base}.{tower.layer}"
    attention, mlp = f"{layer}.{tower.attention}", f"{layer}.{tower.mlp}"

    def at(path: str, axes: dict[str, int], *steps: Step, where: Literal["output", "input"] = "output") -> Place:
        return Place(path, sizes.layers, axes, at=where, item="input" if where == "input" else None,
                     view=(*tower.steps, *steps))  # fmt: skip

    dimension, hidden, neurons = sizes.hidden // sizes.heads, {"hidden": sizes.hidden}, {"neuron": sizes.neurons}
    heads: Step = ("heads", dimension)
    head = {"head": sizes.heads, "dimension": dimension}
    found: dict[str, Place] = {}
    for number, letter in enumerate("qkv"):
        if tower.query == "qkv":
            part: Step = ("columns", number * sizes.hidden, (number + 1) * sizes.hidden)
            found[f"vision.attention.{letter}"] = at(f"{attention}.qkv", head, part, heads)
        else:
            found[f"vision.attention.{letter}"] = at(f"{attention}.{letter}{tower.query[1:]}", head, heads)
    found |= {
        "vision.attention.z": at(f"{attention}.{tower.out}", head, heads, where="input"),
        "vision.attention.out": at(f"{attention}.{tower.out}", hidden),
        "vision.mlp.act": at(f"{mlp}.{tower.act}", neurons),
        "vision.mlp.post": at(f"{mlp}.{tower.down}", neurons, where="input"),
        "vision.residual": at(layer, hidden),
    }
    if tower.pattern:
        pattern = Place(attention, sizes.layers, {"head": sizes.heads}, item=1, fixed=_EAGER)
        found["vision.attention.pattern"] = pattern
    if tower.pooled:
        found["vision.pooled"] = _pooled(config, base)
    return found if read_at is None else _read_at(found, read_at, sizes.layers)


def sizes_of(config: Any) -> Sizes:
    """The sizes of a tower from its configuration."""
    kind = config.model_type
    if kind == "qwen2_vl_vision":
        return Sizes(config.embed_dim, config.num_heads, int(config.embed_dim * config.mlp_ratio), config.depth)
    if kind in ("qwen2_5_vl_vision", "qwen3_vl_vision"):
        return Sizes(config.hidden_size, config.num_heads, config.intermediate_size, config.depth)
    if kind == "glm4v_vision":
        # The one named intermediate_size is that of the merger.
        return Sizes(config.hidden_size, config.num_heads, config.out_hidden_size, config.depth)
    neurons = _dinov2_neurons(config) if kind == "dinov2" else config.intermediate_size
    return Sizes(config.hidden_size, config.num_attention_heads, neurons, config.num_hidden_layers)


def _dinov2_neurons(config: Any) -> int:
    neurons = int(config.hidden_size * config.mlp_ratio)
    # Two thirds of the width, rounded up to a multiple of 8: a gated MLP has three matrices in place of two.
    return (int(neurons * 2 / 3) + 7) // 8 * 8 if config.use_swiglu_ffn else neurons


def _pooled(config: Any, base: str) -> Place:
    return Place(
        base,
        None,
        {"hidden": config.hidden_size},
        item="pooler_output",
        dead=True,
        why_dead="the language model is given patches, not the pooled embedding",
    )


def _read_at(found: dict[str, Place], read_at: int | list[int], layers: int) -> dict[str, Place]:
    """The places with those layers dead that the projector does not read."""
    listed = list(read_at) if isinstance(read_at, list | tuple) else [read_at]
    # hidden_states has one entry more than there are layers: entry i is what layer i - 1 returns.
    deepest = max(index if index >= 0 else layers + 1 + index for index in listed)
    dead = frozenset(range(deepest, layers))
    why = f"the projector reads hidden state {deepest} of {layers} (vision_feature_layer={read_at})"
    return {
        site: replace(place, dead=dead, why_dead=why) if place.layers is not None and dead else place
        for site, place in found.items()
    }


def cls(config: Any) -> int:
    """Positions of a tower before its patches: SigLIP has none, CLIP and DINOv2 the CLS token."""
    return 0 if config.model_type == "siglip_vision_model" else 1


def tile(config: Any) -> dict[str, int]:
    """Facts of a tile: its patches, the CLS token left out, and the side of a patch in pixels."""
    side, patch = (one[0] if isinstance(one, list | tuple) else one for one in (config.image_size, config.patch_size))
    return {"patches": (side // patch) ** 2, "patch_size": patch}
