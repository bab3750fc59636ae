"""Counting a corpus against plain forward hooks, image by image, summed by hand."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import row, write_corpus, write_images, write_rows
from hooks import neuron_paths, outputs
from PIL import Image

from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.batching.batches import Step, sized, steps_of
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.runs.api import identify
from mmneuron_lens.runs.identify import find
from mmneuron_lens.runs.store import Store

KINDS = {
    "vision.mlp.act": ("cls", "patch"),
    "projector.act": ("patch",),
    "qformer.query.act": ("query",),
    "qformer.text.act": ("text",),
    "llm.mlp.act": ("image", "text"),
}


def by_hand(lens, samples):
    """Counts and tokens by (site, bucket, kind): every sample alone, through the processor and hooks."""
    active, tokens = {}, {}
    llava = lens.architecture.name == "LLaVA-NeXT"
    for sample in samples:
        (file,) = sample.images
        bucket = int(hashlib.sha256(file.read_bytes()).hexdigest(), 16) % 16
        text = f"<image>\n{sample.question}" if llava else sample.question
        inputs = lens.processor(images=Image.open(file).convert("RGB"), text=text, return_tensors="pt")
        for site, paths in neuron_paths(lens).items():
            seen = outputs(lens.module, paths, lambda inputs=inputs: lens.module(**inputs))
            values = torch.stack([seen[path][0] for path in paths]).flatten(1, 2)
            if site == "llm.mlp.act":
                image = inputs["input_ids"][0] == 4
                members = {"image": image, "text": ~image}
            elif site == "vision.mlp.act":
                cls = torch.arange(values.shape[1]) % 17 == 0
                members = {"cls": cls, "patch": ~cls}
            else:
                members = {KINDS[site][0]: torch.ones(values.shape[1], dtype=torch.bool)}
            for kind, member in members.items():
                count = (values[:, member] > 0).sum(1)
                active[site, bucket, kind] = active.get((site, bucket, kind), 0) + count
                tokens[site, bucket, kind] = tokens.get((site, bucket, kind), 0) + int(member.sum())
    return active, tokens


def test_counts_equal_plain_hooks_summed_by_hand(lens, tmp_path):
    samples, _ = read_folder(write_corpus(tmp_path, ("medical",), images=7))
    counts = count_domain(lens, samples, batch_size=3)
    active, tokens = by_hand(lens, samples)
    assert list(counts.active) == sorted(neuron_paths(lens))
    assert len({bucket for _, bucket, _ in active}) > 2
    for site, kinds in counts.kinds.items():
        assert kinds == KINDS[site]
        for bucket in range(16):
            for place, kind in enumerate(kinds):
                expected = active.get((site, bucket, kind), torch.zeros_like(counts.active[site][0, :, 0]))
                assert torch.equal(counts.active[site][bucket, :, place], expected), (site, bucket, kind)
                assert int(counts.tokens[site][bucket, place]) == tokens.get((site, bucket, kind), 0)
    assert (counts.domain, counts.samples) == ("medical", 14)


def test_the_same_corpus_gives_the_same_bytes(lens, tmp_path):
    samples, _ = read_folder(write_corpus(tmp_path / "corpus", ("common",)))
    shuffled = random.Random(0).sample(samples, len(samples))
    named = []

    def progress(items, name):
        named.append((len(items), name))
        yield from items

    first = count_domain(lens, samples, batch_size=4, corpus="mine")
    first.save(tmp_path / "first.safetensors")
    count_domain(lens, shuffled, batch_size=4, corpus="mine", progress=progress).save(tmp_path / "second.safetensors")
    assert content_hash(tmp_path / "first.safetensors") == content_hash(tmp_path / "second.safetensors")
    assert named == [(len(steps_of(sized(samples), 4)), "counting common")]
    assert str(tmp_path) not in (tmp_path / "first.safetensors").read_bytes().decode("latin-1")
    assert first.provenance["batch size"] == 4
    assert first.provenance["prompt"] == "identification"
    assert (first.provenance["corpus"]["name"], first.provenance["corpus"]["questions"]) == ("mine", 10)
    assert {"model id", "revision", "fingerprint", "dtype", "device"} < set(first.provenance)


def test_no_batch_mixes_buckets_and_every_sample_is_in_one(tmp_path):
    samples, _ = read_folder(write_corpus(tmp_path, images=20))
    found = sized(samples)
    made = steps_of(found, 4)
    buckets = {one.sample.id: one.bucket for one in found}
    assert all(one.digest == hashlib.sha256(one.sample.images[0].read_bytes()).hexdigest() for one in found)
    for step in made:
        assert 1 <= len(step.samples) <= 4
        assert {buckets[sample.id] for sample in step.samples} == {step.group}
    assert sorted(sample.id for step in made for sample in step.samples) == sorted(sample.id for sample in samples)
    order = [step.group for step in made]
    assert order == sorted(order)
    assert made == steps_of(reversed(found), 4)
    assert [len(step.samples) for step in steps_of(found, 7, buckets=False)] == [7] * 11 + [3]
    assert {step.group for step in steps_of(found, 7, buckets=False)} == {0}
    assert isinstance(made[0], Step)
    with pytest.raises(ValueError, match="batch size is 0; it must be 1 or more"):
        steps_of(found, 0)


def test_a_truncated_image_is_named_and_the_others_count(lens, tmp_path):
    folder = write_corpus(tmp_path, ("common",))
    file = folder / "images" / "common2.png"
    whole, _ = read_folder(folder)
    others = [sample for sample in whole if sample.images[0].name != file.name]
    expected = count_domain(lens, others, batch_size=3)
    file.write_bytes(file.read_bytes()[:-2000])
    samples, problems = read_folder(folder)
    counts = count_domain(lens, samples, batch_size=3, problems=problems)
    for site in counts.active:
        assert torch.equal(counts.active[site], expected.active[site])
        assert torch.equal(counts.tokens[site], expected.tokens[site])
    assert counts.samples == expected.samples == 8
    assert [problem.line for problem in problems] == [5, 6]
    with pytest.raises(ValueError, match=r"common2\.png: not an image that can be read"):
        count_domain(lens, samples)
    alone = [sample for sample in samples if sample.images[0].name == file.name]
    with pytest.raises(ValueError, match="no sample of common could be read"):
        count_domain(lens, alone, problems=problems)


def test_several_images_a_question(lens, tmp_path):
    write_images(tmp_path, "auto_driving", 3)
    frames = [f"images/auto_driving{number}.png" for number in range(3)]
    samples, _ = read_folder(write_rows(tmp_path, [row("auto_driving", 0, image=None, images=frames)]))
    counts = count_domain(lens, samples)
    batch, _ = encode(lens, samples, "identification")
    assert batch is not None
    if lens.architecture.name == "LLaVA-NeXT":
        assert prompt_of(lens, samples[0], "identification") == "<image>\n<image>\n<image>\nIs it red?"
        assert batch.images == (3,)
    else:
        middle = lens.encode([samples[0].images[1]], ["Is it red?"])
        assert torch.equal(batch.inputs["pixel_values"], middle.inputs["pixel_values"])
    real = batch.fields["llm"]["weight"].sum()
    assert int(counts.tokens["llm.mlp.act"].sum()) == int(real)


def test_from_samples_to_a_selection_with_controls(lens, tmp_path):
    corpus = load_corpus(write_corpus(tmp_path, images=6))
    found = identify(lens, corpus, batch_size=4, fraction=0.1, permutations=3)
    assert found.selection.domains == ("common", "medical")
    assert found.selection.parameters["fraction"] == 0.1
    assert found.wider.parameters["fraction"] == 0.05
    assert found.controls.discovery is not None
    assert found.controls.overlap is not None
    assert found.controls.missing == ""
    site = "llm.mlp.act"
    total = sum(counts.total(site)[0] for counts in found.counts)
    assert torch.equal(found.silent(site), total == 0)


def test_too_few_images_for_controls_are_said_not_hidden(lens, tmp_path):
    samples, _ = read_folder(write_corpus(tmp_path, images=1))
    found = find([count_domain(lens, some) for some in by_domain(samples).values()], fraction=0.1)
    assert found.controls.discovery is None
    assert found.controls.overlap is None
    assert "The controls were not run: common has tokens in 1 bucket" in found.controls.missing


def test_controls_of_a_selection_that_was_replaced_are_removed(lens, tmp_path):
    """Where those of the new one cannot be run, the old ones are of no selection that is there."""
    samples, _ = read_folder(write_corpus(tmp_path / "corpus", images=6))
    by = by_domain(samples).values()
    found = find([count_domain(lens, some) for some in by], fraction=0.1, permutations=2, store=Store(tmp_path / "run"))
    assert found.controls.discovery is not None
    files = sorted((tmp_path / "run" / "controls").rglob("*.safetensors"))
    assert len(files) == 3
    few = [count_domain(lens, [one for one in some if one.images == some[0].images]) for some in by]
    said: list[str] = []
    replaced = find(few, fraction=0.2, permutations=2, store=Store(tmp_path / "run", replace=True, say=said.append))
    assert "The controls were not run" in replaced.controls.missing
    assert [file for file in files if file.exists()] == []
    assert sorted(line for line in said if "removed" in line) == [
        f"{file}: was made otherwise, and is removed." for file in files
    ]


def test_samples_of_several_domains_are_refused(lens, tmp_path):
    samples, _ = read_folder(write_corpus(tmp_path, images=1))
    with pytest.raises(
        ValueError, match=r"counts are of one domain, and these 4 samples are of \['common', 'medical'\]"
    ):
        count_domain(lens, samples)
    with pytest.raises(ValueError, match="these 0 samples are of none"):
        count_domain(lens, [])


def test_of_several_frames_those_that_fit_are_asked_about(tmp_path):
    lens = tiny_lens("llava_next")
    write_images(tmp_path, "auto_driving", 14)
    names = [f"images/auto_driving{number}.png" for number in range(14)]
    write_rows(tmp_path, [row("auto_driving", 0, image=None, images=names), row("auto_driving", 1, "why")])
    samples, problems = read_folder(tmp_path)
    pictures = [Image.open(tmp_path / name) for name in names]
    asked = "<image>\n" * 14 + samples[0].question
    whole = lens.processor(images=pictures, text=[asked], return_tensors="pt")
    assert whole["input_ids"].shape[1] > 512
    with pytest.raises(ValueError, match=r"^the prompt takes \d+ positions, and \w+ has 512; shorten it"):
        lens.encode([pictures], [asked])
    # By counting the tokens of every choice, from the most frames down.
    for chosen in range(14, 1, -1):
        places = [round(place * 13 / (chosen - 1)) for place in range(chosen)]
        some = replace(samples[0], images=tuple(samples[0].images[place] for place in places))
        batch, _ = encode(lens, [some], "identification", RecordProblems(tmp_path))
        if batch is not None:
            break
    assert 2 < chosen < 14
    assert batch.inputs["input_ids"].shape[1] <= 512
    found = count_domain(lens, samples, batch_size=1, problems=problems)
    by_hand = count_domain(lens, [some, samples[1]], batch_size=1, problems=problems)
    assert found.provenance == by_hand.provenance
    for site in found.active:
        assert torch.equal(found.active[site], by_hand.active[site])
    # A frame that cannot be read is named, as any image.
    (tmp_path / names[3]).write_bytes(b"no picture")
    left = count_domain(lens, samples, batch_size=1, problems=problems)
    assert (left.samples, len(problems)) == (1, 1)
    assert "line 1: image cannot be decoded: " in str(problems)
