"""Activations that are infinite or NaN end whatever rests on them, with layer, site and cure."""

from __future__ import annotations

import copy
import math

import pytest
import tiny_models
import torch
from conftest import pictures, tiny_lens
from drawn_corpus import write_corpus
from hooks import neuron_paths, outputs

from interventions import (
    Graph,
    count_active,
    count_active_by_kind,
    count_checked,
    count_not_finite,
    lens_entropy,
    mean_activation,
    sum_activations,
)
from interventions.errors import MMNeuronError, NotFinite
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.deviations import MEASURES, Deviations
from mmneuron_lens.artifacts.embeddings import Embeddings
from mmneuron_lens.artifacts.means import Means
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments.ablate import ablate
from mmneuron_lens.experiments.count import count_domain, counting_graph
from mmneuron_lens.experiments.deviate import deviate
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.experiments.entropy import read_entropy, top_one
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.neurons.selection import select

INF, NAN = math.inf, math.nan
CURE = r'float16 ends at 65,504, so load the model with dtype "bfloat16" or "float32"\.$'


@pytest.fixture
def corpus(tmp_path):
    return by_domain(read_folder(write_corpus(tmp_path, images=3))[0])


def overflowing(name, path, dtype=torch.float16):
    """A tiny model one of whose matrices takes float16 beyond its end."""
    module, processor = getattr(tiny_models, name)()
    module = copy.deepcopy(module).to(dtype)
    with torch.no_grad():
        module.get_submodule(path).weight.mul_(60_000)
    return Lens.wrap(module, processor)


GATE = {
    "llava_next": "model.language_model.layers.1.mlp.gate_proj",
    "instructblip": "language_model.model.layers.1.mlp.gate_proj",
}
VISION = {
    "llava_next": "model.vision_tower.encoder.layers.1.mlp.fc1",
    "instructblip": "vision_model.encoder.layers.0.mlp.fc2",
}


def number(act, weight):
    return int(count_not_finite.function(torch.tensor(act), torch.tensor(weight)))


@pytest.mark.parametrize("wrong", [INF, -INF, NAN])
def test_a_position_is_counted_once_whatever_is_wrong_with_it(wrong):
    assert number([[1.0, wrong], [2.0, -3.0], [wrong, wrong], [INF, -INF]], [1, 1, 5, 1]) == 3
    assert number([[[1.0, wrong]], [[0.0, 0.0]]], [[1], [1]]) == 1


def test_padding_may_hold_anything():
    act, weight = torch.tensor([[NAN, INF], [1.0, -2.0], [3.0, 0.5]]), torch.tensor([0, 1, 2])
    assert number(act.tolist(), weight.tolist()) == 0
    assert sum_activations.function(act, weight).tolist() == [7.0, -1.0]
    total, tokens = mean_activation.function(act, weight)
    assert (total.tolist(), int(tokens)) == ([7.0, -1.0], 3)
    kind = torch.tensor([[False, True], [True, False], [False, True]])
    entropy, counted = lens_entropy.function(act, lambda hidden: hidden, weight, kind)
    assert counted.tolist() == [1, 2]
    assert entropy.isfinite().all()
    assert top_one.function(act, weight, kind)["sum"].isfinite().all()
    # A text position that is wrong says nothing of the images.
    entropy, _ = lens_entropy.function(act, lambda hidden: hidden, torch.tensor([1, 1, 2]), kind)
    assert entropy.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_finite_activations_are_counted_as_they_are(dtype):
    act = torch.full((2, 4096), 60_000.0, dtype=dtype)
    assert int(count_not_finite.function(act, torch.ones(2, dtype=torch.int64))) == 0


def test_both_counts_together_are_those_apart():
    lens = tiny_lens("llava_next")
    batch = lens.encode(pictures((40, 56), (64, 30)), ["is it?", "why"])
    apart = count_active_by_kind.at("*.act") | count_not_finite.at("*.act")
    out = lens.run(count_checked.at("*.act") | apart, batch)
    for site in ("vision.mlp.act", "projector.act", "llm.mlp.act"):
        assert torch.equal(out["count_checked", site]["active"], out["count_active_by_kind", site])
        assert torch.equal(out["count_checked", site]["not finite"], out["count_not_finite", site])


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_the_tally_is_what_hooks_see(name):
    lens = overflowing(name, GATE[name])
    batch = lens.encode(pictures((40, 56), (64, 30)), ["is it?", "how many are there?"])
    paths = neuron_paths(lens)["llm.mlp.act"]
    seen = outputs(lens.module, paths, lambda: lens.module(**batch.inputs))
    real = batch.fields["llm"]["weight"].bool()
    expected = [int((~seen[path][0].isfinite()).any(-1)[real].sum()) for path in paths]
    found = lens.run(count_not_finite | count_active, batch)
    assert found["count_not_finite"].tolist() == expected
    assert expected[0] == 0 < expected[1]
    # What the tally is for: positions whose activations are NaN count as inactive.
    assert (found["count_active"][2] < real.sum() // 4).all()


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
@pytest.mark.parametrize("exact", [False, True])
def test_counting_ends_with_site_layer_and_cure(name, exact, corpus):
    with pytest.raises(NotFinite, match=rf"^llm\.mlp\.act, layer 1: activations at \d+ positions are .*; {CURE}"):
        count_domain(overflowing(name, GATE[name]), corpus["common"], exact=exact)
    with pytest.raises(NotFinite, match=r"^vision\.mlp\.act, layer 1: activations at \d+ positions"):
        count_domain(overflowing(name, VISION[name]), corpus["common"], exact=exact)


def test_the_error_is_one_line_and_one_that_can_be_mended(corpus):
    with pytest.raises(ArithmeticError) as caught:
        count_domain(overflowing("llava_next", GATE["llava_next"]), corpus["common"])
    assert isinstance(caught.value, MMNeuronError)
    assert "\n" not in str(caught.value)


def test_the_cure_helps(corpus):
    for dtype in (torch.bfloat16, torch.float32):
        count_domain(overflowing("llava_next", GATE["llava_next"], dtype), corpus["common"])


def test_weights_that_are_not_finite_in_float32_are_named_as_such(corpus):
    lens = overflowing("llava_next", GATE["llava_next"], torch.float32)
    with torch.no_grad():
        lens.module.get_submodule(GATE["llava_next"]).weight[3, 2] = NAN
    with pytest.raises(NotFinite, match=r"layer 1: .*float32 seldom ends there: look for such weights in"):
        count_domain(lens, corpus["common"])


def test_a_remote_count_ends_likewise(corpus):
    from mmneuron_lens.batching.encoding import encode_packed
    from mmneuron_lens.experiments.count import piece_of, plan_count
    from mmneuron_lens.runtime.compile import results_over
    from mmneuron_lens.runtime.remote import travelling
    from mmneuron_lens.runtime.run import job_of
    from mmneuron_lens.wire.job import run_job

    lens = overflowing("llava_next", GATE["llava_next"])
    plan = plan_count(lens, corpus["common"])
    batch, _ = encode_packed(lens, plan.steps[0].samples, plan.prompt, 96)
    plans, _ = travelling(counting_graph(lens), lens.model)
    job = {**job_of(lens.model, {}, False), "overs": results_over(counting_graph(lens), lens.architecture)}
    values = run_job(lens.nnsight, plans, [{**batch.travelling(), "source": None}], job)["values"]
    with pytest.raises(NotFinite, match=r"^llm\.mlp\.act, layer 1"):
        piece_of(lens, plan, 0, values, (), ())


STUDIES = {
    "means": (lambda lens, corpus: mean_activations(lens, corpus), r"llm\.mlp\.act, layer 1: \d+ numbers read"),
    "entropy": (lambda lens, corpus: read_entropy(lens, corpus["common"]), r"llm\.residual, layer 1: \d+ numbers read"),
    "trace": (lambda lens, corpus: trace_sample(lens, corpus["common"][0]), r"llm\.residual, layer 1: \d+ numbers"),
}


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
@pytest.mark.parametrize("study", STUDIES)
def test_studies_end_likewise(name, study, corpus):
    run, said = STUDIES[study]
    with pytest.raises(NotFinite, match=rf"^{said}.*infinite or NaN; {CURE}"):
        run(overflowing(name, GATE[name]), corpus)


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_embeddings_end_likewise(name, corpus):
    with pytest.raises(NotFinite, match=rf"^vision\.pooled: \d+ numbers read there are infinite or NaN; {CURE}"):
        embed_images(overflowing(name, VISION[name]), corpus)


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_deviations_and_answers_end_likewise(name, corpus):
    whole = tiny_lens(name)
    selection = select([count_domain(whole, some) for some in corpus.values()], fraction=0.3, percentile=0.6)
    lens = overflowing(name, GATE[name])
    with pytest.raises(NotFinite, match=rf"^llm\.residual: \d+ numbers read there are infinite or NaN; {CURE}"):
        deviate(lens, selection, corpus["common"], random_draws=1)
    for beams in (1, 2):
        with pytest.raises(NotFinite, match=rf"^llm\.norm: activations at \d+ positions are infinite or NaN; {CURE}"):
            ablate(lens, selection, {"common": corpus["common"]}, random_draws=1, num_beams=beams, max_new_tokens=2)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_that_overflows_only_while_it_grows_is_refused(beams):
    from interventions import writes

    @writes("llm.residual")
    def overflow(hidden):
        return hidden * torch.tensor(INF)

    lens = tiny_lens("llava_next")
    batch = lens.encode(pictures((40, 56)), ["is it?"])
    settings = {"max_new_tokens": 3, "num_beams": beams, "min_new_tokens": 3}
    with pytest.raises(NotFinite, match=r"^llm\.norm: activations at \d+ positions"):
        lens.generate(overflow.at(layers=1, steps="generated"), batch, **settings)
    out = lens.generate(Graph(), batch, **settings)
    assert len(out) == 0
    assert len(out.tokens[0]) == 3


def test_a_count_of_ones_own_stays_beside_the_guard_of_a_generation():
    lens = tiny_lens("llava_next")
    batch = lens.encode(pictures((40, 56)), ["is it?"])
    out = lens.generate(count_not_finite.at("llm.norm"), batch, max_new_tokens=2)
    assert list(out) == [("count_not_finite", "llm.norm")]


@pytest.mark.parametrize(
    "made",
    [
        Means("m", {"llm.mlp.act": torch.tensor([[1.0, NAN]])}),
        Embeddings("m", torch.tensor([[1.0], [INF]]), ("common", "common")),
        Deviations("m", "common", (("LLM", "domain"),), ("a",), dict.fromkeys(MEASURES, torch.tensor([[NAN]]))),
    ],
    ids=["means", "embeddings", "deviations"],
)
def test_no_artifact_is_written_with_them(made, tmp_path):
    file = tmp_path / "one.safetensors"
    with pytest.raises(NotFinite, match=r"one.safetensors: 1 values of .* are infinite or NaN, so it is not written"):
        made.save(file)
    assert not file.exists()


def test_a_kind_without_tokens_has_no_entropy_and_is_no_error(tmp_path, corpus):
    found = read_entropy(tiny_lens("instructblip"), corpus["common"])
    assert found.entropy.isfinite().all()
    assert (found.entropy[found.tokens.sum(1) == 0] == 0).all()
    found.save(tmp_path / "entropies.safetensors")
