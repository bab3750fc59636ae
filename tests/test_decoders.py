"""LLaVA-NeXT and LLaVA on every language model that they were published with."""

from __future__ import annotations

from functools import cache

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures
from hooks import outputs

from interventions import count_active, keep, writes
from mmneuron_lens import Lens

DECODERS = {
    "Mistral": ("MistralConfig", {"sliding_window": None}, "mlp.act_fn"),
    "Llama": ("LlamaConfig", {}, "mlp.act_fn"),
    "Qwen2": ("Qwen2Config", {}, "mlp.act_fn"),
    "Qwen3": ("Qwen3Config", {}, "mlp.act_fn"),
    "Phi3": ("Phi3Config", {"sliding_window": None}, "mlp.activation_fn"),
    "Gemma2": ("Gemma2Config", {"sliding_window": 256, "query_pre_attn_scalar": 8}, "mlp.act_fn"),
}


@cache
def lens_on(model: str, decoder: str) -> Lens:
    kind, own, _ = DECODERS[decoder]
    config = newer_models.text_config(kind, 101, **own)
    return Lens.wrap(*tiny_models.on(model, config))


@pytest.fixture(params=DECODERS)
def decoder(request):
    return request.param


@pytest.mark.parametrize("model", ["llava_next", "llava"])
def test_every_site_is_proved(model, decoder):
    lens = lens_on(model, decoder)
    proofs = {proof.site: proof for proof in lens.prove()}
    reached = {site for site in lens.sites if not site.endswith("pattern")}
    assert reached <= set(proofs)
    assert all(proofs[site].moved for site in reached - {"vision.pooled"})


def test_counts_are_those_of_hooks(decoder):
    lens = lens_on("llava_next", decoder)
    images, texts = pictures((40, 56), (64, 30)), ["what is this?", "why"]
    found = lens.run(count_active, lens.encode(images, texts))["count_active", "llm.mlp.act"]
    paths = [f"model.language_model.layers.{layer}.{DECODERS[decoder][2]}" for layer in range(newer_models.LAYERS)]
    expected = torch.zeros_like(found)
    for image, text in zip(images, texts, strict=True):
        inputs = lens.processor(text=[f"<image>\n{text}"], images=[image], return_tensors="pt")
        seen = outputs(lens.module, paths, lambda inputs=inputs: lens.module(**inputs))
        expected += torch.stack([(seen[path][0] > 0).sum((0, 1)) for path in paths])
    assert torch.equal(found, expected)


def test_queries_keys_and_values_are_those_of_the_attention(decoder):
    """Written out from the weights: what a layer is given, normed and projected."""
    lens = lens_on("llava_next", decoder)
    batch = lens.encode(pictures((32, 32)), ["x"])
    layer = lens.module.model.language_model.layers[0]
    (hidden,) = lens.run(keep.at("llm.embedding"), batch)["keep", "llm.embedding"]
    attention = layer.self_attn
    with torch.no_grad():
        normed = layer.input_layernorm(hidden)
        if decoder == "Phi3":
            q, k, v = torch.split(attention.qkv_proj(normed), [32, 16, 16], dim=-1)
        else:
            q, k, v = (getattr(attention, f"{letter}_proj")(normed) for letter in "qkv")
    for letter, expected in zip("qkv", (q, k, v), strict=True):
        found = lens.run(keep.at(f"llm.attention.{letter}", layers=0), batch)["keep", f"llm.attention.{letter}"][0][0]
        assert torch.equal(found, expected.unflatten(-1, (-1, 8))), letter


def test_what_attention_and_mlp_add_is_what_the_residual_gains(decoder):
    lens = lens_on("llava_next", decoder)
    batch = lens.encode(pictures((32, 32)), ["x"])
    sites = ("llm.embedding", "llm.attention.out", "llm.mlp.out", "llm.residual")
    out = lens.run(keep.at(list(sites)), batch)
    before, attention, mlp, after = (out["keep", site][0] for site in sites)
    torch.testing.assert_close(before + attention[0] + mlp[0], after[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[0] + attention[1] + mlp[1], after[1], rtol=1e-4, atol=1e-4)


def test_what_the_down_projection_is_given_can_be_zeroed(decoder):
    lens = lens_on("llava_next", decoder)
    batch = lens.encode(pictures((32, 32)), ["x"])

    @writes("llm.mlp.post")
    def silence(post):
        return torch.zeros_like(post)

    out = lens.run(silence | keep.at("llm.mlp.out"), batch)["keep", "llm.mlp.out"][0]
    assert float(out.abs().max()) < 1e-6
