"""Vision towers: where their sites lie, by model type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.architectures.architecture import Place

_EAGER = "the weights are returned beside the output, not used again; write vision.attention.z"


def clip(config: Any, base: str) -> dict[str, Place]:
    """CLIP's vision model: separate q, k, v projections."""
    places = _shared(config, base)
    layer = f"{base}.encoder.layers.{{l}}"
    head = _head(config)
    for letter in "qkv":
        places[f"vision.attention.{letter}"] = Place(
            f"{layer}.self_attn.{letter}_proj", config.num_hidden_layers, head, view=("heads", head["dimension"])
        )
    places["vision.attention.z"] = replace(
        places["vision.attention.q"], path=f"{layer}.self_attn.out_proj", at="input", item="input"
    )
    places["vision.attention.out"] = Place(
        f"{layer}.self_attn.out_proj", config.num_hidden_layers, {"hidden": config.hidden_size}
    )
    return places


def blip(config: Any, base: str) -> dict[str, Place]:
    """The ViT of BLIP-2 and InstructBLIP: q, k and v fused in one projection."""
    places = _shared(config, base)
    layer = f"{base}.encoder.layers.{{l}}"
    head = _head(config)
    for index, letter in enumerate("qkv"):
        places[f"vision.attention.{letter}"] = Place(
            f"{layer}.self_attn.qkv", config.num_hidden_layers, head, view=("part", index, 3, head["dimension"])
        )
    places["vision.attention.z"] = Place(
        f"{layer}.self_attn.projection",
        config.num_hidden_layers,
        head,
        at="input",
        item="input",
        view=("heads", head["dimension"]),
    )
    places["vision.attention.out"] = Place(
        f"{layer}.self_attn.projection", config.num_hidden_layers, {"hidden": config.hidden_size}
    )
    return places


def dinov2(config: Any, base: str) -> dict[str, Place]:
    """DINOv2, as `Dinov2Model`: separate q, k, v projections; the giant one's MLP is gated, as in a Llama.

    The features a projector reads are the layers' own outputs: the final norm lies on the way to the pooled embedding
    (the normed CLS token) alone.
    """
    layer, layers = f"{base}.encoder.layer.{{l}}", config.num_hidden_layers
    neurons, act = int(config.hidden_size * config.mlp_ratio), "activation_fn"
    if config.use_swiglu_ffn:
        # Two thirds of the width, rounded up to a multiple of 8: a gated MLP has three matrices in place of two.
        neurons, act = (int(neurons * 2 / 3) + 7) // 8 * 8, "act_fn"
    head = _head(config)
    heads = Place(f"{layer}.attention.q_proj", layers, head, view=("heads", head["dimension"]))
    return {
        "vision.attention.q": heads,
        "vision.attention.k": replace(heads, path=f"{layer}.attention.k_proj"),
        "vision.attention.v": replace(heads, path=f"{layer}.attention.v_proj"),
        "vision.attention.pattern": Place(
            f"{layer}.attention", layers, {"head": config.num_attention_heads}, item=1, fixed=_EAGER
        ),
        "vision.attention.z": replace(heads, path=f"{layer}.attention.o_proj", at="input", item="input"),
        "vision.attention.out": Place(f"{layer}.attention.o_proj", layers, {"hidden": config.hidden_size}),
        "vision.mlp.act": Place(f"{layer}.mlp.{act}", layers, {"neuron": neurons}),
        "vision.residual": Place(layer, layers, {"hidden": config.hidden_size}),
        "vision.pooled": _pooled(config, base),
    }


def _head(config: Any) -> dict[str, int]:
    return {"head": config.num_attention_heads, "dimension": config.hidden_size // config.num_attention_heads}


def _shared(config: Any, base: str) -> dict[str, Place]:
    layer, layers = f"{base}.encoder.layers.{{l}}", config.num_hidden_layers
    return {
        "vision.attention.pattern": Place(
            f"{layer}.self_attn", layers, {"head": config.num_attention_heads}, item=1, fixed=_EAGER
        ),
        "vision.mlp.act": Place(f"{layer}.mlp.activation_fn", layers, {"neuron": config.intermediate_size}),
        "vision.residual": Place(layer, layers, {"hidden": config.hidden_size}),
        "vision.pooled": _pooled(config, base),
    }


def _pooled(config: Any, base: str) -> Place:
    return Place(
        base,
        None,
        {"hidden": config.hidden_size},
        item="pooler_output",
        dead=True,
        why_dead="the language model is given patches, not the pooled embedding",
    )


FAMILIES = {
    "clip_vision_model": clip,
    "instructblip_vision_model": blip,
    "blip_2_vision_model": blip,
    "dinov2": dinov2,
}


def places(config: Any, base: str, read_at: int | list[int] | None = None) -> dict[str, Place]:
    """Sites of a vision tower at `base`. `read_at` is `vision_feature_layer`: deeper layers are marked dead.

    Raises `ValueError` for a model type that is not known, with those that are.
    """
    if config.model_type not in FAMILIES:
        raise InvalidValue(unknown("vision tower", config.model_type, list(FAMILIES)))
    found = FAMILIES[config.model_type](config, base)
    if read_at is None:
        return found
    layers = config.num_hidden_layers
    # hidden_states has one entry more than there are layers: entry i is what layer i - 1 returns.
    deepest = max(index if index >= 0 else layers + 1 + index for index in _listed(read_at))
    dead = frozenset(range(deepest, layers))
    why = f"the projector reads hidden state {deepest} of {layers} (vision_feature_layer={read_at})"
    return {
        site: replace(place, dead=dead, why_dead=why) if place.layers is not None and dead else place
        for site, place in found.items()
    }


def _listed(value: int | list[int]) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value]


def patches(config: Any) -> int:
    """Patches of one tile, the CLS token left out."""
    return (config.image_size // config.patch_size) ** 2
