"""Packed questions count what they count one by one."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from conftest import pictures, tiny_lens

from interventions import count_active_by_kind, count_positions, keep, logit_lens
from mmneuron_lens import Lens

ROWS = [
    (pictures((40, 56), seed=1), ["is it red?", "is it blue?", "how many cars are there?", "x"]),
    (pictures((64, 30), seed=2), ["what is this?"]),
    (pictures((32, 32), (40, 40), seed=3), ["<image><image> compare them", "<image><image> count"]),
]


def one_by_one(lens, graph, rows=ROWS):
    return lens.run(graph, [lens.encode([some], [prompt]) for some, prompts in rows for prompt in prompts])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_counts_equal_one_by_one(attention):
    module, processor = tiny_models.llava_next()
    module = copy.deepcopy(module)
    module.set_attn_implementation(attention)
    lens = Lens.wrap(module, processor)
    graph = count_active_by_kind.at("*.act") | count_positions.at("*.act")
    expected, found = one_by_one(lens, graph), lens.run(graph, lens.pack(ROWS))
    for key, counts in expected.items():
        if key[0] == "count_positions":
            assert torch.equal(found[key], counts), key
        else:
            # Sums in another order round differently at zero: a count may flip there.
            different = (found[key] != counts).sum()
            assert different <= counts.numel() // 1000 + 1, f"{key}: {different} of {counts.numel()} counts differ"
            assert (found[key] - counts).abs().max() <= 1


def test_each_question_computes_what_it_computes_alone():
    lens = tiny_lens("llava_next")
    together = lens.run(keep | logit_lens, lens.pack(ROWS[:1]))
    hidden = together["keep", "llm.residual"][0][:, 0]
    batch = lens.pack(ROWS[:1])
    positions = batch.inputs["position_ids"][0]
    starts = [0, *(positions.diff() < 0).nonzero()[:, 0].add(1).tolist(), len(positions)]
    shared = int(positions[starts[1]])
    for number, prompt in enumerate(ROWS[0][1]):
        alone = lens.run(keep, lens.encode([ROWS[0][0]], [prompt]))["keep", "llm.residual"][0][:, 0]
        begin = shared if number == 0 else starts[number]
        mine = torch.cat([hidden[:, :shared], hidden[:, begin : starts[number + 1]]], dim=1)
        torch.testing.assert_close(mine, alone, rtol=1e-3, atol=1e-3)


def test_weights_say_how_often_a_position_counts():
    lens = tiny_lens("llava_next")
    batch = lens.pack(ROWS)
    weight, kind = batch.fields["llm"]["weight"], batch.fields["llm"]["kind"]
    assert weight[0][kind[0, :, 0]].unique().tolist() == [4]
    assert weight[0].max() == 4
    assert weight[0].min() == 0 or weight[0].min() == 1
    assert batch.fields["vision"]["weight"][:, 0].unique().tolist() == [1, 2, 4]
    alone = [lens.encode([some], [prompt]) for some, prompts in ROWS for prompt in prompts]
    total = sum(int(batch.fields["llm"]["weight"].sum()) for batch in alone)
    assert int(weight.sum()) == total


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="InstructBLIP takes exactly one image per text; these have"):
        tiny_lens("instructblip").pack(ROWS)
    with pytest.raises(ValueError, match="at least one image"):
        tiny_lens("llava_next").pack([([], ["text alone"])])


def test_identification_packs_and_exact_asks_one_by_one(tmp_path):
    from drawn_corpus import write_corpus

    from mmneuron_lens.corpora.folder import read_folder
    from mmneuron_lens.experiments.count import count_domain

    lens = tiny_lens("llava_next")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))
    quick, exact = count_domain(lens, samples), count_domain(lens, samples, exact=True)
    assert quick.provenance["packing"] == "96 questions"
    assert exact.provenance["packing"] == "none"
    assert quick.samples == exact.samples
    for site in exact.active:
        assert torch.equal(quick.tokens[site], exact.tokens[site])
        assert (quick.active[site] - exact.active[site]).abs().sum() <= exact.active[site].numel() // 1000 + 1
