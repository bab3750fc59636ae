"""What a neuron writes: its share of a logit, against the model's logits; its words, against the whole product."""

from __future__ import annotations

import copy

import newer_models
import pytest
import tiny_models
import torch
from conftest import mixed_batch, pictures

from interventions import direct_logit_attribution, neuron_write_in, per_layer, root_mean_square
from interventions.errors import InvalidValue, OutOfRange
from mmneuron_lens import Lens
from mmneuron_lens.experiments import vocabulary
from mmneuron_lens.experiments.token_directions import (
    final_norm,
    token_id,
    unembedding_direction,
    write_in,
    write_in_weights,
)
from mmneuron_lens.experiments.vocabulary import neuron_vocabulary
from mmneuron_lens.runtime.readable_tokens import readable

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

YES, NO = 60, 70


def uneven(module: torch.nn.Module) -> torch.nn.Module:
    """Norms that do not multiply by one."""
    generator = torch.Generator().manual_seed(3)
    module = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        if "norm" in name and parameter.ndim == 1:
            parameter.data = parameter.data + 0.5 * torch.rand(parameter.shape, generator=generator)
    return module


@pytest.fixture(params=["llava_next", "instructblip", "paligemma"])
def uneven_lens(request) -> Lens:
    """A Llama of each kind of tower, and a Gemma, whose norms multiply by 1 + w."""
    home = newer_models if request.param == "paligemma" else tiny_models
    module, processor = getattr(home, request.param)()
    return Lens.wrap(uneven(module), processor)


def batch_for(lens: Lens):
    if lens.architecture.name == "PaliGemma":
        return lens.encode(pictures((32, 32), (32, 32), (32, 32)), ["Is it red?", "how many cars are there?", "why"])
    return mixed_batch(lens)


def logits_of(lens: Lens, batch) -> torch.Tensor:
    with torch.no_grad():
        return lens.module(**batch.inputs).logits[:, -1]


def other_parts(lens: Lens, batch, direction: torch.Tensor) -> torch.Tensor:
    """What the embedding and attention add at the last position, in logits."""
    scale = root_mean_square.bind(epsilon=final_norm(lens).epsilon).at("llm.residual", layers=-1, positions=-1)
    parts = direct_logit_attribution.bind(direction=direction).at(positions=-1)
    out = lens.run(parts | scale, batch)
    whole = out["direct_logit_attribution", "llm.embedding"][0]
    whole = whole + out["direct_logit_attribution", "llm.attention.out"][0].sum(0)
    return (whole / out["root_mean_square", "llm.residual"][0][0])[:, 0]


def test_neurons_embedding_and_attention_sum_up_to_the_logit(uneven_lens):
    batch = batch_for(uneven_lens)
    shares = write_in(uneven_lens, batch, YES)
    assert shares.shape[1] == 3
    rest = other_parts(uneven_lens, batch, unembedding_direction(uneven_lens, YES))
    torch.testing.assert_close(shares.sum((0, 2)) + rest, logits_of(uneven_lens, batch)[:, YES], rtol=1e-4, atol=1e-3)


def test_neurons_of_a_layer_add_what_its_mlp_adds(uneven_lens):
    batch = batch_for(uneven_lens)
    direction = unembedding_direction(uneven_lens, YES, against=NO)
    weights = per_layer(write_in_weights(uneven_lens, YES, against=NO))
    graph = neuron_write_in.bind(direction=weights) | direct_logit_attribution.bind(direction=direction)
    out = uneven_lens.run(graph, batch)
    found = out["neuron_write_in", "llm.mlp.post"][0].sum(-1)
    expected = out["direct_logit_attribution", "llm.mlp.out"][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert expected.std() > 0.1


def test_a_difference_of_two_tokens_is_the_difference_of_their_contributions(lens):
    batch = mixed_batch(lens)
    both = write_in(lens, batch, YES) - write_in(lens, batch, NO)
    torch.testing.assert_close(write_in(lens, batch, YES, against=NO), both, rtol=1e-4, atol=1e-5)


def test_a_packed_batch_is_refused(lens):
    packed = lens.pack([(pictures((32, 32)), ["is it red?", "why"])])
    with pytest.raises(InvalidValue, match="A packed batch has several prompts in a row"):
        write_in(lens, packed, YES)


@pytest.mark.parametrize("name", ["gemma3", "glm4v", "paligemma2"])
def test_a_norm_behind_the_mlp_is_refused(name):
    lens = Lens.wrap(*getattr(newer_models, name)())
    with pytest.raises(InvalidValue, match=r"has a norm behind its MLP \(post_\w+norm\)"):
        write_in_weights(lens, YES)
    with pytest.raises(InvalidValue, match="has a norm behind its MLP"):
        neuron_vocabulary(lens, 0, 0)


def test_a_norm_with_a_mean_or_a_bias_is_refused(lens):
    module = copy.deepcopy(lens.module)
    path = lens.architecture.place("llm.norm").path
    module.set_submodule(path, torch.nn.LayerNorm(32, eps=1e-6))
    with pytest.raises(InvalidValue, match=r"\(LayerNorm\) is no bias-free RMS norm"):
        final_norm(Lens.wrap(module, lens.processor))


def test_tokens_that_are_none_are_refused(lens):
    assert torch.equal(
        unembedding_direction(lens, "a"), unembedding_direction(lens, lens.processor.tokenizer.encode("a")[-1])
    )
    with pytest.raises(InvalidValue, match=r"'yes' is 3 tokens, \['y', 'e', 's'\]; give a text of one token"):
        write_in_weights(lens, "yes")
    with pytest.raises(OutOfRange, match=r"There is no token 101; .* has 0 to 100"):
        write_in_weights(lens, 101)


def test_weights_that_are_not_here_or_in_fewer_bits_are_refused(lens, tmp_path):
    weightless = Lens.weightless(tiny_models.checkpoint("llava_next", tmp_path))
    with pytest.raises(InvalidValue, match="has no weights here"):
        write_in_weights(weightless, YES)
    # A token's id is a matter of the vocabulary.
    assert token_id(weightless, "a") == token_id(lens, "a") == lens.processor.tokenizer.encode("a")[-1]
    with pytest.raises(OutOfRange, match=r"There is no token 101; .* has 0 to 100"):
        token_id(weightless, 101)
    module = copy.deepcopy(lens.module)
    down = dict(lens.architecture.place("llm.mlp.post").paths())[1]
    module.set_submodule(down, torch.nn.Sequential(torch.nn.Linear(48, 32)))
    with pytest.raises(InvalidValue, match=r"holds no plain matrix of weights \(Sequential\)"):
        write_in_weights(Lens.wrap(module, lens.processor), YES)


@pytest.mark.parametrize("through_norm", [False, True])
@pytest.mark.parametrize("cells", [7, 2**24])
def test_the_words_of_a_neuron_are_those_of_the_whole_product(uneven_lens, cells, through_norm, monkeypatch):
    lens = uneven_lens
    monkeypatch.setattr(vocabulary, "_CELLS", cells)
    path = dict(lens.architecture.place("llm.mlp.post").paths())[1]
    down = lens.module.get_submodule(path).weight.detach()
    rows = lens.module.get_output_embeddings().weight.detach()[: len(lens.processor.tokenizer)]
    scale = final_norm(lens).weight if through_norm else torch.ones(down.shape[0])
    whole = (down * scale[:, None]).T @ rows.T
    found = neuron_vocabulary(lens, 1, [5, 2], top_k=4, through_norm=through_norm)
    assert [(one.layer, one.neuron) for one in found] == [(1, 5), (1, 2)]
    for one in found:
        for side, largest in ((one.top, True), (one.bottom, False)):
            scores, tokens = whole[one.neuron].topk(4, largest=largest)
            assert [word for word, _ in side] == [readable(lens.processor.tokenizer, int(t)) for t in tokens]
            assert [score for _, score in side] == pytest.approx(scores.tolist(), rel=1e-4)


def test_words_are_a_table_and_read_as_words():
    lens = Lens("embedded/llava-next")
    found = neuron_vocabulary(lens, -1, range(20), top_k=3)
    frame = found.to_frame()
    assert frame.columns == ["layer", "neuron", "side", "rank", "token", "score"]
    assert frame.shape == (20 * 2 * 3, 6)
    assert not any(mark in token for token in frame["token"] for mark in "Ġ▁Ċ")
    assert all(frame.filter(frame["side"] == "top")["layer"] == 3)
    assert str(next(iter(found))).startswith("layer 3, neuron 0: + ")
    assert "NeuronVocabulary of embedded/llava-next" in repr(found)
    assert "<table" in found._repr_html_()


@pytest.mark.parametrize("site", ["vision.mlp.act", "projector.act", "qformer.query.act"])
def test_neurons_before_the_language_model_have_no_words(lens, site):
    with pytest.raises(InvalidValue, match="they have no vocabulary"):
        neuron_vocabulary(lens, 0, 0, site=site)


def test_layers_neurons_and_numbers_that_are_not_there_are_refused(lens):
    with pytest.raises(OutOfRange, match=r"There is no layer 3; .* has 0 to 2"):
        neuron_vocabulary(lens, 3, 0)
    with pytest.raises(OutOfRange, match=r"There is no neuron 48; .* has 0 to 47"):
        neuron_vocabulary(lens, 0, [1, 48])
    with pytest.raises(OutOfRange, match=r"top_k is 0; give 1 to 101"):
        neuron_vocabulary(lens, 0, 0, top_k=0)
