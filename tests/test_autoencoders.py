"""Sparse autoencoders: features by the formula written again, splicing against plain hooks, files that do not fit."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import mixed_batch
from hooks import hooked, neuron_paths, outputs
from PIL import Image
from safetensors.torch import save_file

from interventions import (
    count_features,
    count_positions,
    load_autoencoder,
    load_graph,
    sae_features,
    save_graph,
    scale_features,
    splice_autoencoder,
)
from interventions.errors import FileMissing, InvalidValue
from mmneuron_lens.neurons.selection import select_module

HIDDEN, FEATURES, LAYER = 32, 90, 1
FORMS = {
    "relu": {},
    "not centred": {"centred": False},
    "threshold": {"threshold": torch.linspace(-0.5, 2.5, FEATURES)},
    "top k": {"top_k": 7},
}


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(4)
    shapes = {"encoder": (HIDDEN, FEATURES), "encoder_bias": (FEATURES,), "decoder_bias": (HIDDEN,)}
    shapes["decoder"] = (FEATURES, HIDDEN)
    return {name: torch.randn(shape, generator=generator) / 5 for name, shape in shapes.items()}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def encoder_of(weights):
    return {name: tensor for name, tensor in weights.items() if name != "decoder"}


def features_again(x, w, form):
    """Position by position, feature by feature."""
    given = x if form.get("centred") is False else x - w["decoder_bias"]
    z = torch.einsum("...h,hf->...f", given, w["encoder"]) + w["encoder_bias"]
    f = torch.where(z > 0, z, torch.zeros(()))
    if "threshold" in form:
        f = torch.where(z > form["threshold"], f, torch.zeros(()))
    if "top_k" in form:
        bar = z.sort(-1, descending=True).values[..., form["top_k"] - 1, None]
        f = torch.where(z >= bar, f, torch.zeros(()))
    return f


def path_of(lens) -> str:
    return neuron_paths(lens)["llm.mlp.act"][LAYER].removesuffix(".mlp.act_fn")


def residual(lens, batch):
    return outputs(lens.module, [path_of(lens)], lambda: lens.module(**batch.inputs))[path_of(lens)][0]


def test_features_are_those_of_the_formula(lens, weights, form):
    batch = mixed_batch(lens)
    found = lens.run(sae_features.bind(**encoder_of(weights), **form).at(layers=LAYER), batch)
    expected = features_again(residual(lens, batch), weights, form)
    torch.testing.assert_close(found["sae_features", "llm.residual"][0][0], expected, rtol=1e-4, atol=1e-4)
    assert 0.01 < (expected > 0).float().mean() < 0.9


def test_features_are_counted_by_kind(lens, weights, form, monkeypatch):
    monkeypatch.setattr("interventions.sparse_autoencoder._CHUNK", 50)
    batch = mixed_batch(lens)
    counts = lens.run(count_features.bind(**encoder_of(weights), **form).at(layers=LAYER), [batch, batch])
    active = features_again(residual(lens, batch), weights, form) > 0
    fields = batch.fields["llm"]
    kinds = fields["kind"] & (fields["weight"] > 0)[..., None]
    expected = 2 * torch.einsum("btf,btk->kf", active.double(), kinds.double()).long()
    assert torch.equal(counts["count_features", "llm.residual"][0], expected)
    assert counts["count_features", "llm.residual"].dtype == torch.int64


def test_dape_runs_on_features(lens, weights):
    one, other = (lens.encode([image], ["is it red?"]) for image in pictures_of_two_domains())
    positions = count_positions.at("llm.residual", layers=LAYER)
    graph = count_features.bind(**encoder_of(weights)).at(layers=LAYER) | positions
    probabilities = []
    for batch in (one, other):
        out = lens.run(graph, batch)
        counts = out["count_features", "llm.residual"].sum(1).double()
        probabilities.append(counts / out["count_positions", "llm.residual"].sum(1)[:, None])
    found = select_module(torch.stack(probabilities, -1), fraction=0.1, percentile=0.6)
    assert found.mask.shape == (1, FEATURES, 2)
    assert found.requested == found.selected == 9


def pictures_of_two_domains():
    noise = numpy.random.default_rng(0)
    return [
        Image.fromarray(noise.integers(low, high, (32, 32, 3), dtype=numpy.uint8))
        for low, high in ((0, 60), (190, 255))
    ]


def test_splicing_puts_the_reconstruction_in_place(lens, weights, form):
    batch = mixed_batch(lens)

    def reconstructed(hidden):
        return features_again(hidden, weights, form) @ weights["decoder"] + weights["decoder_bias"]

    with torch.no_grad(), hooked(lens.module, {path_of(lens): reconstructed}):
        expected = lens.module(**batch.inputs).logits
    found = lens.run(splice_autoencoder.bind(**weights, **form).at(layers=LAYER), batch, logits=True).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_scaled_features_keep_the_error(lens, weights, form, factor):
    batch, marked = mixed_batch(lens), torch.arange(FEATURES) % 4 == 0

    def changed(hidden):
        f = features_again(hidden, weights, form)
        error = hidden - (f @ weights["decoder"] + weights["decoder_bias"])
        return torch.where(marked, factor * f, f) @ weights["decoder"] + weights["decoder_bias"] + error

    with torch.no_grad(), hooked(lens.module, {path_of(lens): changed}):
        expected = lens.module(**batch.inputs).logits
    graph = scale_features.bind(features=marked, factor=factor, **weights, **form).at(layers=LAYER)
    found = lens.run(graph, batch, logits=True).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        plain = lens.module(**batch.inputs).logits
    assert torch.allclose(plain, expected, atol=1e-3) == (factor == 1)


def tensors_of(weights, **more):
    names = {"W_enc": "encoder", "b_enc": "encoder_bias", "W_dec": "decoder", "b_dec": "decoder_bias"}
    return {name: weights[ours] for name, ours in names.items()} | more


@pytest.mark.parametrize("threshold", [False, True])
def test_a_file_is_read(lens, weights, tmp_path, threshold):
    more = {"threshold": FORMS["threshold"]["threshold"]} if threshold else {}
    save_file(tensors_of(weights, **more), tmp_path / "sae.safetensors")
    loaded = load_autoencoder(tmp_path / "sae.safetensors")
    batch = mixed_batch(lens)
    for intervention, part, given in (
        (sae_features, "encoder", encoder_of(weights)),
        (splice_autoencoder.named("spliced"), "whole", weights),
    ):
        one, other = (
            lens.run(intervention.bind(**bound).at(layers=LAYER), batch, logits=True).logits[0]
            for bound in (loaded.bindings(part), {**given, **more})
        )
        assert torch.equal(one, other)
    assert repr(loaded) == f"Autoencoder(90 features of 32 hidden{', with a threshold' if threshold else ''})"


def test_graphs_with_an_autoencoder_are_saved(weights, tmp_path):
    graph = count_features.bind(**encoder_of(weights), threshold=None, top_k=3).at(layers=LAYER)
    graph |= splice_autoencoder.bind(**weights, **FORMS["threshold"])
    assert load_graph(save_graph(graph, tmp_path / "graph.json")) == graph


def test_files_that_do_not_fit_are_refused(weights, tmp_path):
    file = tmp_path / "sae.safetensors"
    with pytest.raises(FileMissing, match=r"sae.safetensors is not there; give the .safetensors file"):
        load_autoencoder(file)
    file.write_bytes(b"\x80\x04no tensors")
    with pytest.raises(InvalidValue, match="is no safetensors file"):
        load_autoencoder(file)
    tensors = tensors_of(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "b_enc"}, file)
    with pytest.raises(InvalidValue, match="has no b_enc; it has "):
        load_autoencoder(file)
    save_file({**tensors, "scaling_factor": torch.ones(FEATURES)}, file)
    with pytest.raises(InvalidValue, match="has scaling_factor, of which nothing is known here"):
        load_autoencoder(file)
    save_file({**tensors, "W_enc": tensors["W_enc"].T.contiguous()}, file)
    with pytest.raises(InvalidValue, match=r"W_enc is torch.float32 \[90, 32\], and \[32, 90\] would fit"):
        load_autoencoder(file)
