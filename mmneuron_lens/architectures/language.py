"""Language models inside vision-language models: where their sites lie, by model type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.architectures.architecture import Place
from mmneuron_lens.architectures.refused import refusal
from mmneuron_lens.wire.facts_types import Step

_EAGER = "the weights are returned beside the output, not used again; write llm.attention.mask or llm.attention.z"


@dataclass(frozen=True)
class Decoder:
    """How a family names the modules of a layer.

    - query: of separate projections the first, with `q` for `k` and `v`; or the one in which all three are fused
    - out: in attention, what mixes the heads
    - act, down: the activation function, and what takes its neurons
    - attention_out, mlp_out: what attention and MLP add to the residual stream; "" where `out` and `mlp` do
    - norm: the final one, beside the layers
    - steps: from what the MLP holds to rows of tokens
    """

    query: str = "q_proj"
    out: str = "o_proj"
    act: str = "mlp.act_fn"
    down: str = "mlp.down_proj"
    attention_out: str = ""
    mlp_out: str = "mlp"
    norm: str = "norm"
    steps: tuple[Step, ...] = ()


LLAMA = Decoder()

GEMMA = Decoder(attention_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm")

OPT = Decoder(
    out="out_proj", act="activation_fn", down="fc2", mlp_out="fc2", norm="final_layer_norm", steps=(("rows",),)
)

DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), LLAMA),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "phi3": Decoder(query="qkv_proj", act="mlp.activation_fn"),
    "glm4v_text": Decoder(
        act="mlp.activation_fn", attention_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm"
    ),
    "opt": OPT,
}
"""By model type."""


def places(config: Any, base: str, head: str, decoder: Decoder | None = None) -> dict[str, Place]:
    """Sites of a language model whose body is at `base` and whose unembedding is at `head`.

    - decoder: how its modules are named; as its family names them if left out

    Raises `InvalidValue` for a model type that is refused or not known, with those that are, and for an OPT without a
    final norm.
    """
    if decoder is None and config.model_type not in DECODERS:
        raise InvalidValue(refusal("language model", config.model_type, DECODERS))
    decoder, body = decoder or DECODERS[config.model_type], base
    neurons = getattr(config, "intermediate_size", None)
    if config.model_type == "opt":
        if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
            raise InvalidValue(
                "OPT with norms after its layers (opt-350m) has no final norm, so no logit lens; not supported."
            )
        body, neurons = f"{base}.decoder", config.ffn_dim
    assert neurons is not None
    layers, layer = config.num_hidden_layers, f"{body}.layers.{{l}}"
    attention, hidden, vocabulary = f"{layer}.self_attn", {"hidden": config.hidden_size}, config.vocab_size
    found = _heads(config, decoder, attention)
    return found | {
        "llm.embedding": Place(layer.format(l=0), None, hidden, at="input", item="hidden_states"),
        "llm.attention.mask": Place(attention, layers, {}, at="keyword", item="attention_mask", view=(("mask",),)),
        "llm.attention.pattern": Place(attention, layers, {"head": config.num_attention_heads}, item=1, fixed=_EAGER),
        "llm.attention.out": Place(
            f"{layer}.{decoder.attention_out}" if decoder.attention_out else f"{attention}.{decoder.out}",
            layers,
            hidden,
        ),
        "llm.mlp.act": Place(f"{layer}.{decoder.act}", layers, {"neuron": neurons}, view=decoder.steps),
        "llm.mlp.post": Place(
            *(f"{layer}.{decoder.down}", layers, {"neuron": neurons}), at="input", item="input", view=decoder.steps
        ),
        "llm.mlp.out": Place(f"{layer}.{decoder.mlp_out}", layers, hidden, view=decoder.steps),
        "llm.residual": Place(layer, layers, hidden),
        "llm.norm": Place(f"{body}.{decoder.norm}", None, hidden),
        "llm.unembed": Place(head, None, hidden, at="input", item="input"),
        "llm.logits": Place(head, None, {"vocabulary": vocabulary}),
    }


def _heads(config: Any, decoder: Decoder, attention: str) -> dict[str, Place]:
    """Queries, keys and values as they are projected, and what the heads return."""
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    keys = getattr(config, "num_key_value_heads", None) or heads
    dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
    apart: Step = ("heads", dimension)
    found: dict[str, Place] = {}
    start = 0
    for letter, number in (("q", heads), ("k", keys), ("v", keys)):
        end = start + number * dimension
        fused = decoder.query == "qkv_proj"
        path = f"{attention}.{decoder.query if fused else letter + decoder.query[1:]}"
        steps: tuple[Step, ...] = (("columns", start, end), apart) if fused else (apart,)
        found[f"llm.attention.{letter}"] = Place(path, layers, {"head": number, "dimension": dimension}, view=steps)
        start = end
    sizes = {"head": heads, "dimension": dimension}
    mixed = Place(f"{attention}.{decoder.out}", layers, sizes, at="input", item="input", view=(apart,))
    return {**found, "llm.attention.z": mixed}
