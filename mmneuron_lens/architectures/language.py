"""Language models inside vision-language models: where their sites lie, by model type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.architectures.architecture import Place

_EAGER = "the weights are returned beside the output, not used again; write llm.attention.mask or llm.attention.z"


def llama(config: Any, base: str, head: str) -> dict[str, Place]:
    """Llama and the families with its module names (Vicuna, Mistral, Qwen2): gated MLP, RMS norm."""
    hidden, neurons = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    dimension = getattr(config, "head_dim", None) or hidden // heads
    layers = config.num_hidden_layers
    layer = f"{base}.layers.{{l}}"
    places = _shared(config, layer, layers, hidden, heads)
    for letter, number in (("q", heads), ("k", keys), ("v", keys)):
        places[f"llm.attention.{letter}"] = Place(
            f"{layer}.self_attn.{letter}_proj",
            layers,
            {"head": number, "dimension": dimension},
            view=("heads", dimension),
        )
    return places | {
        "llm.attention.z": Place(
            f"{layer}.self_attn.o_proj",
            layers,
            {"head": heads, "dimension": dimension},
            at="input",
            item="input",
            view=("heads", dimension),
        ),
        "llm.attention.out": Place(f"{layer}.self_attn.o_proj", layers, {"hidden": hidden}),
        "llm.mlp.act": Place(f"{layer}.mlp.act_fn", layers, {"neuron": neurons}),
        "llm.mlp.out": Place(f"{layer}.mlp", layers, {"hidden": hidden}),
        "llm.norm": Place(f"{base}.norm", None, {"hidden": hidden}),
        "llm.unembed": Place(head, None, {"hidden": hidden}, at="input", item="input"),
        "llm.logits": Place(head, None, {"vocabulary": config.vocab_size}),
    }


def opt(config: Any, base: str, head: str) -> dict[str, Place]:
    """OPT, as in the published BLIP-2: two-layer MLP whose batch and tokens are flattened."""
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        raise InvalidValue(
            "OPT with norms after its layers (opt-350m) has no final norm, so no logit lens; not supported."
        )
    hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    dimension = hidden // heads
    decoder = f"{base}.decoder"
    layer = f"{decoder}.layers.{{l}}"
    places = _shared(config, layer, layers, hidden, heads)
    for letter in "qkv":
        places[f"llm.attention.{letter}"] = Place(
            f"{layer}.self_attn.{letter}_proj",
            layers,
            {"head": heads, "dimension": dimension},
            view=("heads", dimension),
        )
    return places | {
        "llm.attention.z": replace(
            places["llm.attention.q"], path=f"{layer}.self_attn.out_proj", at="input", item="input"
        ),
        "llm.attention.out": Place(f"{layer}.self_attn.out_proj", layers, {"hidden": hidden}),
        "llm.mlp.act": Place(f"{layer}.activation_fn", layers, {"neuron": config.ffn_dim}, view=("rows",)),
        "llm.mlp.out": Place(f"{layer}.fc2", layers, {"hidden": hidden}, view=("rows",)),
        "llm.norm": Place(f"{decoder}.final_layer_norm", None, {"hidden": hidden}),
        "llm.unembed": Place(head, None, {"hidden": hidden}, at="input", item="input"),
        "llm.logits": Place(head, None, {"vocabulary": config.vocab_size}),
    }


def _shared(config: Any, layer: str, layers: int, hidden: int, heads: int) -> dict[str, Place]:
    return {
        "llm.embedding": Place(layer.format(l=0), None, {"hidden": hidden}, at="input", item="hidden_states"),
        "llm.attention.mask": Place(
            f"{layer}.self_attn", layers, {}, at="keyword", item="attention_mask", view=("mask",)
        ),
        "llm.attention.pattern": Place(f"{layer}.self_attn", layers, {"head": heads}, item=1, fixed=_EAGER),
        "llm.residual": Place(layer, layers, {"hidden": hidden}),
    }


FAMILIES = {"llama": llama, "mistral": llama, "qwen2": llama, "opt": opt}


def places(config: Any, base: str, head: str) -> dict[str, Place]:
    """Sites of a language model whose body is at `base` and whose unembedding is at `head`.

    Raises `ValueError` for a model type that is not known, with those that are.
    """
    if config.model_type not in FAMILIES:
        raise InvalidValue(unknown("language model", config.model_type, list(FAMILIES)))
    return FAMILIES[config.model_type](config, base, head)
