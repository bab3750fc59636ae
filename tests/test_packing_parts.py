"""A packed row run in parts, or a shared vision tower, counts what questions asked one by one count."""

from __future__ import annotations

import pytest
import torch
from conftest import pictures, tiny_lens
from hooks import neuron_paths, outputs

from interventions import count_active_by_kind, count_positions, keep, lens_entropy, logit_lens, mean_activation
from mmneuron_lens.wire import pack as packing

GRAPH = count_active_by_kind.at("*.act") | count_positions.at("*.act")
QUESTIONS = ["is it red?", "is it blue?", "how many cars are there?", "x", "is it a cat or a dog?"]
ONE_IMAGE = [(pictures((40, 56), seed=1), QUESTIONS)]
SAME_SIZE = [(pictures((40, 56), seed=1), QUESTIONS), (pictures((40, 56), seed=2), ["what is this?", "where?"])]
MIXED = [*SAME_SIZE, (pictures((64, 30), seed=3), ["why?"]), (pictures((32, 32), seed=4), ["when", "who", "whom"])]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Tiny prefixes count as long, and a part holds few questions."""
    monkeypatch.setattr(packing, "LONG", 8)
    monkeypatch.setattr(packing, "PART", 30)


def one_by_one(lens, graph, rows):
    return lens.run(graph, [lens.encode([some], [prompt]) for some, prompts in rows for prompt in prompts])


def assert_counts(found, expected):
    for key, counts in expected.items():
        if key[0] == "count_positions":
            assert torch.equal(found[key], counts), key
        else:
            different = int((found[key] != counts).sum())
            assert different <= counts.numel() // 1000 + 1, f"{key}: {different} of {counts.numel()} counts differ"
            assert (found[key] - counts).abs().max() <= 1


@pytest.mark.parametrize("rows", [ONE_IMAGE, SAME_SIZE, MIXED], ids=["one image", "same size", "mixed"])
def test_parts_count_what_one_by_one_counts(rows):
    lens = tiny_lens("llava_next")
    batch = lens.pack(rows, cut=True)
    assert len(batch.sharing["cuts"]) > (2 if len(rows) == 1 else 1)
    assert_counts(lens.run(GRAPH, batch), one_by_one(lens, GRAPH, rows))


def test_parts_end_between_questions_and_hold_about_as_much_as_they_may():
    batch = tiny_lens("llava_next").pack(ONE_IMAGE, cut=True)
    start, *ends = batch.sharing["cuts"]
    positions = batch.inputs["position_ids"][0].tolist()
    assert positions[: start + 1] == list(range(start + 1))
    for begin, end in zip([start, *ends], ends, strict=False):
        assert positions[begin] == start
        # A lone question may be longer.
        assert end - begin <= 30 or start not in positions[begin + 1 : end]
    assert ends[-1] == len(positions)


def test_rows_of_one_image_size_need_no_padding_before_their_questions():
    batch = tiny_lens("llava_next").pack(SAME_SIZE, cut=True)
    start = batch.sharing["cuts"][0]
    assert (batch.fields["llm"]["weight"][:, :start] > 0).all()


@pytest.mark.parametrize("graph", [mean_activation.at("*.act"), lens_entropy], ids=["mean", "entropy"])
def test_means_are_those_of_whole_rows(graph):
    lens = tiny_lens("llava_next")
    found, whole = lens.run(graph, lens.pack(ONE_IMAGE, cut=True)), lens.run(graph, lens.pack(ONE_IMAGE))
    for key, value in whole.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_what_needs_a_whole_row_is_refused():
    lens = tiny_lens("llava_next")
    batch = lens.pack(ONE_IMAGE, cut=True)
    with pytest.raises(ValueError, match=r"logit_lens at llm.residual needs a whole row.*cut=False"):
        lens.run(logit_lens, batch)
    with pytest.raises(ValueError, match=r"count_active_by_kind at llm.mlp.act needs a whole row.*cut=False"):
        lens.run(count_active_by_kind.at(positions=[-1]), batch)
    with pytest.raises(ValueError, match=r"logits need a whole row.*cut=False"):
        lens.run(GRAPH, batch, logits=True)


def test_a_job_packs_and_runs_what_a_local_run_does():
    from mmneuron_lens.runtime.compile import results_over
    from mmneuron_lens.runtime.remote import travelling
    from mmneuron_lens.runtime.run import job_of
    from mmneuron_lens.wire.job import run_job

    for name, rows in (("llava_next", ONE_IMAGE), ("instructblip", SAME_SIZE)):
        lens = tiny_lens(name)
        batch = lens.pack(rows, cut=True)
        plans, _ = travelling(GRAPH, lens.model)
        overs = results_over(GRAPH, lens.architecture)
        item = {**batch.travelling(), "source": None}
        there = run_job(lens.nnsight, plans, [item], {**job_of(lens.model, {}, False), "overs": overs})["values"]
        here = lens.run(GRAPH, batch)
        assert set(here) == set(there)
        assert all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.parametrize("name", ["instructblip", "blip2"])
def test_a_shared_vision_tower_counts_what_one_by_one_counts(name):
    lens = tiny_lens(name)
    batch = lens.pack(SAME_SIZE)
    assert batch.inputs["pixel_values"].shape[0] == 2
    assert batch.fields["vision"]["weight"][:, 0].tolist() == [5, 2]
    assert batch.rows == 7
    found = lens.run(GRAPH, batch)
    assert_counts(found, one_by_one(lens, GRAPH, SAME_SIZE))


def test_a_shared_vision_tower_sees_each_image_once_and_every_row_its_own():
    lens = tiny_lens("instructblip")
    apart = lens.encode(
        [some for some, prompts in SAME_SIZE for _ in prompts], [p for _, some in SAME_SIZE for p in some]
    )
    once = lens.run(keep.at(["vision.residual", "vision.pooled", "llm.residual"]), lens.pack(SAME_SIZE))
    each = lens.run(keep.at(["vision.residual", "vision.pooled", "llm.residual"]), apart)
    assert once["keep", "vision.residual"][0].shape[1] == once["keep", "vision.pooled"][0].shape[0] == 2
    assert each["keep", "vision.residual"][0].shape[1] == 7
    torch.testing.assert_close(once["keep", "llm.residual"][0], each["keep", "llm.residual"][0], rtol=1e-4, atol=1e-4)


def test_counting_asks_for_one_column_of_logits_and_no_cache(lens):
    batch = lens.encode(pictures((40, 56), (64, 30)), ["Is it red?", "why"])
    head = lens.architecture.place("llm.logits").path
    paths = neuron_paths(lens)["llm.mlp.act"]
    seen = outputs(lens.module, [head, *paths], lambda: lens.run(GRAPH, batch))
    assert seen[head][0].shape[1] == 1
    assert seen[paths[0]][0].shape[1] == batch.inputs["input_ids"].shape[1]
    whole = outputs(lens.module, [head], lambda: lens.run(GRAPH | keep.at("llm.logits"), batch))
    assert whole[head][0].shape[1] == batch.inputs["input_ids"].shape[1]
    asked = lens.run(GRAPH, batch, logits=True)
    assert torch.equal(asked.logits[0], whole[head][0])


def test_identification_shares_the_vision_tower_and_keeps_an_image_together(tmp_path):
    from drawn_corpus import write_corpus

    from mmneuron_lens.batching.batches import sized, steps_of_whole_images
    from mmneuron_lens.corpora.folder import read_folder
    from mmneuron_lens.experiments.count import PACKED, count_domain

    lens = tiny_lens("instructblip")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))
    quick, exact = count_domain(lens, samples), count_domain(lens, samples, exact=True)
    assert quick.provenance["packing"] == "vision tower"
    for site in exact.active:
        assert torch.equal(quick.tokens[site], exact.tokens[site])
        assert (quick.active[site] - exact.active[site]).abs().sum() <= exact.active[site].numel() // 1000 + 1
    made = [step.samples for step in steps_of_whole_images(sized(samples), 1, PACKED, rows=True)]
    assert sorted(sample.id for some in made for sample in some) == sorted(sample.id for sample in samples)
    assert all(len({sample.images for sample in some}) == 1 for some in made)
    assert len(made) == len({sample.images for sample in samples})
    apart = steps_of_whole_images(sized(samples), 1, PACKED, rows=False)
    assert max(len(step.samples) for step in apart) == 1
