"""The language is enough: five published analyses as compositions of at most ten lines, against plain hooks."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from conftest import mixed_batch, pictures
from hooks import hooked, neuron_paths, outputs
from jaxtyping import Float
from torch import Tensor

from interventions import (
    add_vector,
    direct_logit_attribution,
    keep,
    knock_out_attention,
    patch_activations,
    root_mean_square,
    writes,
)
from mmneuron_lens import Lens


def layer_paths(lens):
    return [path.removesuffix(".mlp.act_fn") for path in neuron_paths(lens)["llm.mlp.act"]]


def test_activation_patching_heat_map(lens):
    clean = lens.encode(pictures((32, 32), seed=1), ["is it red?"])
    corrupted = lens.encode(pictures((32, 32), seed=2), ["is it blu?"])
    answer, length = 50, clean.prompt_length

    # the analysis
    heat = torch.zeros(3, length)
    for layer in range(3):
        for position in range(length):
            patch = patch_activations.at(layers=layer, positions=position)
            heat[layer, position] = lens.run(patch, corrupted, sources=clean, logits=True).logits[0][0, -1, answer]

    residuals = outputs(lens.module, layer_paths(lens), lambda: lens.module(**clean.inputs))
    for layer, path in enumerate(layer_paths(lens)):
        for position in range(0, length, 3):

            def patch(hidden, path=path, position=position):
                hidden = hidden.clone()
                hidden[:, position] = residuals[path][0][:, position]
                return hidden

            with torch.no_grad(), hooked(lens.module, {path: patch}):
                expected = lens.module(**corrupted.inputs).logits[0, -1, answer]
            assert heat[layer, position] == expected
    assert heat.std() > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_image_to_text_attention_knockout(name, attention):
    module, processor = getattr(tiny_models, name)()
    module = copy.deepcopy(module)
    module.set_attn_implementation(attention)
    lens = Lens.wrap(module, processor)
    batch = mixed_batch(lens)

    # the analysis
    image, text = batch.fields["llm"]["kind"][..., 0], batch.fields["llm"]["kind"][..., 1]
    cut = knock_out_attention.bind(queries=text, keys=image).at(layers=[1, 2])
    logits = lens.run(cut, batch, logits=True).logits[0]

    real = batch.inputs["attention_mask"].bool()
    causal = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
    allowed = causal & real[:, None, :] & ~(text[:, :, None] & image[:, None, :])
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]

    def masked(_module, positional, keywords):
        return positional, {**keywords, "attention_mask": additive}

    handles = [
        lens.module.get_submodule(f"{path}.self_attn").register_forward_pre_hook(masked, with_kwargs=True)
        for path in layer_paths(lens)[1:]
    ]
    with torch.no_grad():
        expected = lens.module(**batch.inputs).logits
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        plain = lens.module(**batch.inputs).logits
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected[:, -1], plain[:, -1], atol=1e-2)


def test_knockout_of_a_row_without_padding_uses_the_causal_mask(lens):
    batch = lens.encode(pictures((32, 32)), ["is it red?"])
    image, text = batch.fields["llm"]["kind"][..., 0], batch.fields["llm"]["kind"][..., 1]
    nothing = knock_out_attention.bind(queries=torch.zeros_like(text), keys=image)
    with torch.no_grad():
        plain = lens.module(**batch.inputs).logits
    torch.testing.assert_close(lens.run(nothing, batch, logits=True).logits[0], plain, rtol=1e-4, atol=1e-4)
    everything = knock_out_attention.bind(queries=text, keys=image)
    assert not torch.allclose(lens.run(everything, batch, logits=True).logits[0], plain, atol=1e-2)


def test_steering_during_beam_search(lens):
    batch = mixed_batch(lens)
    beams = {"num_beams": 5, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

    # the analysis
    happy, sad = (
        lens.run(keep.at("llm.residual", layers=1), lens.encode(pictures((32, 32)), [t])) for t in ("good", "evil")
    )
    means = [out["keep", "llm.residual"][0][0].mean((0, 1)) for out in (happy, sad)]
    steer = add_vector.bind(vector=means[0] - means[1], scale=40.0).at(layers=1)
    steered = lens.generate(steer, batch, **beams)

    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    with hooked(lens.module, {layer_paths(lens)[1]: lambda hidden: hidden + 40 * (means[0] - means[1])}):
        expected = lens.module.generate(**inputs, **beams)[:, batch.prompt_length :]
    plain = lens.module.generate(**inputs, **beams)[:, batch.prompt_length :]
    assert not torch.equal(plain, expected)
    assert [tokens.tolist() for tokens in steered.tokens] == [[t for t in row if t != 0] for row in expected.tolist()]


def test_direct_logit_attribution(lens):
    batch = mixed_batch(lens)
    unembedding = lens.module.get_output_embeddings().weight
    norm = lens.module.get_submodule(lens.architecture.place("llm.norm").path)
    yes, no = 60, 70

    # the analysis
    direction = ((unembedding[yes] - unembedding[no]) * norm.weight).detach()
    scale = root_mean_square.bind(epsilon=norm.variance_epsilon).at("llm.residual", layers=-1)
    out = lens.run(direct_logit_attribution.bind(direction=direction) | scale, batch)
    parts = {site: out["direct_logit_attribution", site][0] for site in ("llm.attention.out", "llm.mlp.out")}
    whole = out["direct_logit_attribution", "llm.embedding"][0] + sum(part.sum(0) for part in parts.values())
    difference = whole / out["root_mean_square", "llm.residual"][0][0]

    with torch.no_grad():
        logits = lens.module(**batch.inputs).logits
    real = batch.inputs["attention_mask"].bool()
    expected = (logits[..., yes] - logits[..., no])[real]
    torch.testing.assert_close(difference[real], expected, rtol=1e-4, atol=1e-3)


def test_splicing_a_sparse_autoencoder(lens):
    batch = mixed_batch(lens)
    encoder, decoder = torch.randn(32, 128) / 6, torch.randn(128, 32) / 12

    # the analysis
    @writes("llm.residual")
    def splice(
        hidden: Float[Tensor, "*where hidden"],
        encoder: Float[Tensor, "hidden feature"],
        decoder: Float[Tensor, "feature hidden"],
    ) -> Float[Tensor, "*where hidden"]:
        return (hidden @ encoder).relu() @ decoder

    logits = lens.run(splice.bind(encoder=encoder, decoder=decoder).at(layers=1), batch, logits=True).logits[0]

    with (
        torch.no_grad(),
        hooked(lens.module, {layer_paths(lens)[1]: lambda hidden: (hidden @ encoder).relu() @ decoder}),
    ):
        expected = lens.module(**batch.inputs).logits
    assert torch.equal(logits, expected)


def test_an_intervention_of_a_notebook_cell_runs_composes_and_can_be_edited(lens):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.user_ns.update(lens=lens, batch=mixed_batch(lens))
    cell = """
from interventions import count_active, reads, batch_field
@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def strong(act, weight):
    return ((act > {bar}) * weight[..., None]).flatten(0, -2).sum(0)
out = lens.run(strong | count_active, batch)
"""
    for bar in (0, 1):
        shell.run_cell(cell.format(bar=bar)).raise_error()
        out = shell.user_ns["out"]
        same = torch.equal(out["strong", "llm.mlp.act"], out["count_active", "llm.mlp.act"])
        assert same == (bar == 0)
    InteractiveShell.clear_instance()


def test_generated_tokens_can_be_cut_off_from_the_image(lens):
    batch = mixed_batch(lens)
    beams = {"num_beams": 5, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    image = batch.fields["llm"]["kind"][..., 0]
    cut = knock_out_attention.bind(queries=~image, keys=image, generated=True)
    out = lens.generate(cut, batch, **beams)

    real = batch.inputs["attention_mask"].bool()

    def masked(_module, positional, keywords):
        # All beams of a row alike; every query of this step but image positions is cut off from the image.
        rows, queries = keywords["hidden_states"].shape[:2]
        keys = keywords["attention_mask"].shape[-1]
        visible = torch.ones(3, keys, dtype=torch.bool)
        visible[:, : real.shape[1]] = real
        blind = torch.zeros(3, keys, dtype=torch.bool)
        blind[:, : real.shape[1]] = image
        seen = visible[:, None, :] & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        asking = ~blind[:, keys - queries :]
        itself = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).triu(keys - queries)
        seen = (seen & ~(asking[:, :, None] & blind[:, None, :])) | itself
        return positional, {**keywords, "attention_mask": seen.repeat_interleave(rows // 3, dim=0)[:, None]}

    handles = [
        lens.module.get_submodule(f"{path}.self_attn").register_forward_pre_hook(masked, with_kwargs=True)
        for path in layer_paths(lens)
    ]
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    expected = lens.module.generate(**inputs, **beams)[:, batch.prompt_length :]
    for handle in handles:
        handle.remove()
    plain = lens.module.generate(**inputs, **beams)[:, batch.prompt_length :]
    assert not torch.equal(plain, expected)
    assert [tokens.tolist() for tokens in out.tokens] == [[t for t in row if t != 0] for row in expected.tolist()]
