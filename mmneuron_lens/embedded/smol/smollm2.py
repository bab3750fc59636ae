"""SmolLM2 out of a GGUF file: its quantised weights made floating-point, under the names of `LlamaForCausalLM`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmneuron_lens.embedded.smol.dinov2 import PartError
from mmneuron_lens.extras import needed

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<|endoftext|>"

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of the GGUF format (llama architecture) and those of transformers."""


def read_smollm2(file: str | Path) -> LlamaForCausalLM:
    """The language model in a GGUF file, float32, its word embeddings tied when the file holds no unembedding.

    Raises `PartError` for an architecture other than llama or for weights that do not fit, `ImportError` without
    `gguf`.
    """
    reader = needed("gguf", "the smol model").GGUFReader(str(file))
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise PartError(f"{file} holds the architecture {architecture!r}, not 'llama'; give SmolLM2's own file.")
    state = weights(reader)
    heads = int(_field(reader, "llama.attention.head_count"))
    hidden = int(_field(reader, "llama.embedding_length"))
    config = LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=int(_field(reader, "llama.feed_forward_length")),
        num_hidden_layers=int(_field(reader, "llama.block_count")),
        num_attention_heads=heads,
        num_key_value_heads=int(_field(reader, "llama.attention.head_count_kv")),
        head_dim=hidden // heads,
        max_position_embeddings=int(_field(reader, "llama.context_length")),
        rms_norm_eps=float(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(_field(reader, "llama.rope.freq_base"))},
        bos_token_id=int(_field(reader, "tokenizer.ggml.bos_token_id")),
        eos_token_id=int(_field(reader, "tokenizer.ggml.eos_token_id")),
        tie_word_embeddings="lm_head.weight" not in state,
    )
    model = LlamaForCausalLM(config)
    missing, extra = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if name != "lm_head.weight" or not config.tie_word_embeddings]
    if missing or extra:
        raise PartError(f"{file}: the model lacks {missing or 'nothing'} and has {extra or 'nothing'} besides.")
    model.tie_weights()
    return model.eval()


def weights(reader: Any) -> dict[str, Tensor]:
    """Every tensor dequantised to float32, by the names of `LlamaForCausalLM`."""
    dequantize = needed("gguf.quants", "the smol model").dequantize
    heads = {
        "attn_q": int(_field(reader, "llama.attention.head_count")),
        "attn_k": int(_field(reader, "llama.attention.head_count_kv")),
    }
    state = {}
    for one in reader.tensors:
        parts = one.name.removesuffix(".weight").split(".")
        if parts[0] != "blk":
            name = OUTER.get(parts[0])
        else:
            inner = INNER.get(parts[2])
            name = inner and f"model.layers.{parts[1]}.{inner}"
        if name is None:
            raise PartError(f"no place for the tensor {one.name!r} of the GGUF file in a Llama model.")
        value = torch.tensor(dequantize(one.data, one.tensor_type), dtype=torch.float32)
        value = value.reshape([int(size) for size in reversed(one.shape)])
        state[f"{name}.weight"] = halves(value, heads[parts[-1]]) if parts[-1] in heads else value
    return state


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection from the file's order to that of transformers, head by head.

    Rotary embedding turns pairs of rows: neighbours in the file, a row and the one half a head further in transformers.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def read_tokenizer(file: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file, with one token more for an image; pads on the left with a token of its own."""
    needed("gguf", "the smol model")
    file = Path(file)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN], "pad_token": PAD_TOKEN})
    tokenizer.padding_side = "left"
    return tokenizer


def _field(reader: Any, name: str) -> Any:
    if name not in reader.fields:
        raise PartError(f"the GGUF file has no {name!r}; give SmolLM2's own file.")
    return reader.fields[name].contents()
