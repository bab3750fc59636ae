"""The nearest words in context: banks and neighbours against plain hooks and cosines of numpy."""

from __future__ import annotations

from types import SimpleNamespace

import newer_models
import numpy
import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus
from IPython.core.interactiveshell import InteractiveShell

import mmneuron_lens as mm
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.neighbours import Neighbours
from mmneuron_lens.artifacts.text_states import TextStates
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments.fit_on_samples import fit_on_samples
from mmneuron_lens.experiments.neighbours import read_neighbours
from mmneuron_lens.experiments.text_bank import read_text_states, texts_of
from mmneuron_lens.lens import Lens
from mmneuron_lens.report.heat import heat_table, neighbour_heat
from mmneuron_lens.report.notebook import register

TEXTS = ["how many cars are there? two", "how many reds are there?", "why is it red", "why is it red", " "]


@pytest.fixture(scope="module")
def banks():
    """By architecture a lens and a bank of texts: one without images, and one that takes no text without an image."""
    lenses = {name: tiny_lens(name) for name in ("llava_next", "instructblip")}
    return {name: (lens, read_text_states(lens, TEXTS, batch_size=2)) for name, lens in lenses.items()}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return by_domain(read_folder(write_corpus(tmp_path_factory.mktemp("corpus"), ("medical",), images=2))[0])["medical"]


def decoder_of(lens):
    return lens.module.model.language_model if hasattr(lens.module, "model") else lens.module.language_model.model


def states_by_hooks(lens, run):
    """The residual stream at the embedding and after every layer, [layer, row, token, hidden]."""
    layers, seen = decoder_of(lens).layers, []
    handles = [
        layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0])),
        *(layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in layers),
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return torch.stack([one[0] if isinstance(one, tuple) else one for one in seen])


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_a_bank_holds_the_states_of_texts_that_the_decoder_reads_alone(banks, name):
    """The decoder by itself, without any image: what a grey picture that nothing attends to must not change."""
    lens, bank = banks[name]
    tokenizer, layers = lens.processor.tokenizer, len(decoder_of(lens).layers)
    assert bank.texts == tuple(TEXTS[:3])
    assert bool(bank.parameters["picture"]) == (name == "instructblip")
    known, expected = set(), {}
    for number, text in enumerate(bank.texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        states = states_by_hooks(lens, lambda ids=ids: decoder_of(lens)(ids))[1:, 0]
        for place in range(1, ids.shape[1]):
            prefix = tuple(ids[0, : place + 1].tolist())
            if prefix not in known:
                known.add(prefix)
                for layer in range(layers):
                    token = tokenizer.decode(ids[0, place : place + 1]).strip()
                    expected[layer + 1, number, place] = (token, states[layer, place])
    found = list(zip(bank.layer.tolist(), bank.text.tolist(), bank.place.tolist(), strict=True))
    assert sorted(found) == sorted(expected)
    assert len(found) == layers * len(known)
    for state, where in enumerate(found):
        token, told = expected[where]
        assert bank.tokens[state] == (token or "␣")
        torch.testing.assert_close(bank.states[state].float(), told / told.norm(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_neighbours_are_the_largest_cosines_of_numpy(banks, samples, name):
    lens, bank = banks[name]
    found = read_neighbours(lens, samples[1], bank, top_k=3)
    batch, _ = encode(lens, [samples[1]], "evaluation")
    assert batch is not None
    states = states_by_hooks(lens, lambda: lens.module(**batch.inputs))[:, 0].double().numpy()
    held = bank.states.double().numpy()
    lengths = numpy.linalg.norm(states, axis=-1)[..., None] * numpy.linalg.norm(held, axis=-1)
    cosines = numpy.einsum("lth,sh->lts", states, held) / lengths
    expected = -numpy.sort(-cosines, axis=-1)[..., :3]
    numpy.testing.assert_allclose(found.cosines.numpy(), expected, atol=2e-6)
    chosen = numpy.take_along_axis(cosines, found.states.numpy(), -1)
    numpy.testing.assert_allclose(chosen, expected, atol=2e-6)
    assert list(found.kinds) == batch.kind[0]
    assert found.layers == ("embedding", "1", "2", "3")
    state = int(found.states[2, 4, 0])
    assert found.best(4, 2) == {
        "token": bank.tokens[state], "layer": int(bank.layer[state]), "text": bank.texts[int(bank.text[state])],
        "place": int(bank.place[state]),
    }  # fmt: skip


def test_a_bank_is_bounded_and_drawn_with_its_seed(banks):
    lens, whole = banks["llava_next"]
    some, again, other = (read_text_states(lens, TEXTS, most=20, batch_size=2, seed=seed) for seed in (0, 0, 1))
    assert len(some.tokens) == 18
    assert torch.equal(some.states, again.states)
    assert not torch.equal(some.place, other.place)
    places = []
    for one in (some, whole):
        where = list(zip(one.layer.tolist(), one.text.tolist(), one.place.tolist(), strict=True))
        places += [{(text, place) for its, text, place in where if its == layer} for layer in (1, 3)]
    assert places[0] == places[1]
    assert places[0] < places[2]


def test_what_a_user_is_given(banks, samples, tmp_path):
    lens, bank = banks["llava_next"]
    found = mm.read_layers(lens, samples[0], neighbours=bank, positions=["image 2", "last"], top_k=2)
    assert isinstance(found, Neighbours)
    assert found.kinds == ("image", "text")
    frame = found.to_frame()
    assert frame.columns == ["layer", "position", "label", "kind", "rank", "cosine", "token", "from_layer", "text"]
    assert len(frame) == 4 * 2 * 2
    row = frame.filter((frame["layer"] == "layer 3") & (frame["position"] == 1)).row(0, named=True)
    assert (row["token"], row["from_layer"]) == (found.best(1)["token"], found.best(1)["layer"])
    assert row["cosine"] == pytest.approx(float(found.cosines[3, 1, 0]))
    table = heat_table(neighbour_heat(found, 0, even=True), "<b>")
    assert table.count("<tr>") == 2
    assert f"cosine {float(found.cosines[2, 0, 0]):.2f}; token " in table
    assert "<b>" not in table
    shell = InteractiveShell.instance()
    register(shell)
    shown = shell.display_formatter.format(found)[0]["text/html"]
    assert shown.count("<table") == 2
    bank.save(tmp_path / "bank.safetensors")
    again = mm.read_layers(lens, samples[0], neighbours=TextStates.load(tmp_path / "bank.safetensors"), top_k=2)
    assert torch.equal(again.states[:, -1], found.states[:, -1])


def test_what_cannot_be_is_refused_in_a_line(banks, samples):
    lens, bank = banks["llava_next"]
    other = banks["instructblip"][0]
    cases = [
        (lambda: read_neighbours(other, samples[0], bank), "This bank of text states was fitted on"),
        (lambda: read_neighbours(lens, samples[0], bank, top_k=999), "top_k is 999; give 1 to"),
        (lambda: read_text_states(lens, [" "]), "There is no text to make a bank of"),
        (
            lambda: read_text_states(lens, ["a"], most=2),
            "most is 2; a bank has at least a state of each",
        ),
        (lambda: read_text_states(lens, ["a <image> b"]), "holds '<image>', which this model's tokenizer reads as"),
        (
            lambda: mm.read_layers(lens, samples[0], neighbours=bank, fitted=SimpleNamespace(kind="tuned lens")),  # type: ignore[call-overload]
            "A question is read by a tuned lens or by its neighbours; give one of them",
        ),
    ]
    for run, said in cases:
        with pytest.raises(InvalidValue, match=said) as caught:
            run()
        assert "\n" not in str(caught.value)


def test_texts_are_questions_with_their_answers(banks, samples):
    lens = banks["llava_next"][0]
    texts = texts_of(lens, samples)
    assert texts == list(dict.fromkeys(f"{one.question} {one.answers[0]}" for one in samples))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_where_attention_runs_both_ways_texts_are_read_without_what_is_seen():
    lens = Lens.wrap(*newer_models.paligemma2())
    bank = read_text_states(lens, ["why is it red", "how many"], batch_size=1)
    assert bank.parameters["picture"]
    bank.check()


def test_a_lens_on_samples_is_fitted_on_equal_batches(samples):
    lens = tiny_lens("instructblip")
    made = fit_on_samples(lens, samples)
    assert (made.prompts, made.parameters["prompt"]) == (4, "identification")
    assert made.parameters["skip"] <= 16
    assert bool(made.error.isfinite().all())
