"""Every site of every architecture is where the table says, and does what it says."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny_models
import torch
from conftest import ARCHITECTURES, tiny_lens

from interventions import NEURON_SITES, SITES, keep
from mmneuron_lens import Lens
from mmneuron_lens.architectures import architecture_of
from mmneuron_lens.architectures.checking import check_places
from mmneuron_lens.runtime.proving import example, prove


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_site_is_proved(name):
    lens = tiny_lens(name)
    certificate = lens.prove()
    assert certificate.unnamed == ()
    proofs = {proof.site: proof for proof in certificate}
    # Attention weights exist under eager attention only; see the next test.
    assert set(proofs) == {site for site in lens.sites if not site.endswith("pattern")}
    alive = {site for site, proof in proofs.items() if proof.moved}
    assert set(proofs) - alive == {"vision.pooled"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_patterns_are_read_under_eager_attention(name):
    module, processor = getattr(tiny_models, name)()
    module = copy.deepcopy(module)
    module.set_attn_implementation("eager")
    lens = Lens.wrap(module, processor)
    proofs = {proof.site: proof for proof in lens.prove()}
    assert set(proofs) == set(lens.sites)
    for site in ("llm.attention.pattern", "vision.attention.pattern"):
        assert proofs[site].moved == ()
        pattern = lens.run(keep.at(site), example(lens.model))["keep", site][0]
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))


def test_a_site_that_is_wired_wrongly_is_caught(lens):
    place = lens.architecture.places["llm.mlp.act"]
    wrong = {
        **lens.architecture.places,
        "llm.mlp.act": type(place)(place.path.replace("act_fn", "up_proj"), 3, {"neuron": 47}),
    }
    changed = replace(lens.model, architecture=replace(lens.architecture, places=wrong))
    with pytest.raises(AssertionError, match=r"llm\.mlp\.act is at '.*up_proj', which is no activation module"):
        prove(changed)
    with pytest.raises(ValueError, match=r"llm\.mlp\.act at '.*up_proj' is 48 wide, not 47"):
        check_places(changed.architecture, changed.module)


def test_a_renamed_module_is_found_on_load(lens):
    place = lens.architecture.places["llm.norm"]
    places = {**lens.architecture.places, "llm.norm": type(place)("model.final_norm", None, place.sizes)}
    with pytest.raises(ValueError, match=r"llm\.norm should be at 'model\.final_norm'"):
        check_places(type(lens.architecture)(lens.architecture.name, places, lens.architecture.facts), lens.module)


def test_unknown_architecture_names_the_choices():
    from transformers import LlamaConfig

    with pytest.raises(ValueError, match=r"Unknown architecture 'llama'\. Did you mean 'llava'\? Choices: llava_next"):
        architecture_of(LlamaConfig())


def test_an_encoder_decoder_language_model_is_refused():
    _, _ = tiny_models.blip2()
    config = copy.deepcopy(tiny_models.blip2()[0].config)
    config.use_decoder_only_language_model = False
    with pytest.raises(ValueError, match="only decoder-only language models"):
        architecture_of(config)


def test_neuron_sites_are_those_of_the_paper():
    projectors = ("projector.deep.act", "projector.act")
    assert ("vision.mlp.act", "qformer.query.act", "qformer.text.act", *projectors, "llm.mlp.act") == NEURON_SITES
    assert all(SITES[site].axes.endswith("neuron") for site in NEURON_SITES)
