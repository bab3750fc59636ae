"""Examples of neurons against plain hooks on the activation modules: activation, question, position, map, words."""

from __future__ import annotations

import hashlib
import random
import re
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from examples_corpus import by_image, hooked_activations, some_neurons, write_example_corpus

from interventions.errors import InvalidValue, UnknownName
from mmneuron_lens.artifacts.neuron_examples import AROUND, SIDE, NeuronExamples
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Memory
from mmneuron_lens.experiments import example_values
from mmneuron_lens.experiments.count import plan_count
from mmneuron_lens.experiments.examples import read_examples
from mmneuron_lens.experiments.read_tops import read_tops, top_steps
from mmneuron_lens.experiments.tops import listed, top_read
from mmneuron_lens.lens import Lens

NAMES = ("llava-next", "instructblip", "idefics3")
K = 3


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_example_corpus(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module", params=NAMES)
def study(request, samples) -> SimpleNamespace:
    """Examples as they are read by default (packed where the model packs), and what hooks see of every question."""
    torch.set_num_threads(1)
    lens = Lens(f"embedded/{request.param}")
    asked = [one for some in samples.values() for one in some]
    neurons = some_neurons(lens)
    found = read_examples(lens, samples, neurons, K, batch_size=3)
    seen = hooked_activations(lens, asked)
    return SimpleNamespace(lens=lens, samples=samples, neurons=neurons, found=found, seen=seen)


def each(found: NeuronExamples) -> Any:
    """Site, row, layer, neuron, rank of every example."""
    for site, neurons in found.neurons.items():
        for row, (layer, neuron) in enumerate(neurons.tolist()):
            for rank in range(found.sample[site].shape[1]):
                if int(found.sample[site][row, rank]) >= 0:
                    yield site, row, layer, neuron, rank


def test_they_are_the_largest_of_every_image(study):
    """By numpy: the best value of each picture, sorted; and it is attained where the example says."""
    found, seen = study.found, study.seen
    assert {site: int(mask.sum()) for site, mask in study.neurons.items()} == {
        site: len(one) for site, one in found.neurons.items()
    }
    pictures = by_image(study.samples)
    assert len(pictures) == 7
    for site, neurons in found.neurons.items():
        for row, (layer, neuron) in enumerate(neurons.tolist()):
            assert study.neurons[site][layer, neuron]
            best = [
                max(seen[one.domain, one.id][site][layer][:, neuron].numpy().max() for one in some)
                for some in pictures.values()
            ]
            numpy.testing.assert_allclose(
                found.activation[site][row].numpy(), -numpy.sort(-numpy.array(best))[:K], rtol=1e-4, atol=1e-6
            )
    for site, row, layer, neuron, rank in each(found):
        shown = found.samples[int(found.sample[site][row, rank])]
        value = seen[shown.domain, shown.id][site][layer][int(found.position[site][row, rank]), neuron]
        assert float(value) == pytest.approx(float(found.activation[site][row, rank]), rel=1e-4, abs=1e-6)
    for site, numbers in found.sample.items():
        for row in numbers.tolist():
            digests = [found.samples[number].images[0][0] for number in row]
            assert len(set(digests)) == K, site


def test_the_first_question_and_position_of_equal_ones(study):
    """What all questions of a picture have alike, the tower's patches, is of the first by domain and id."""
    found, pictures = study.found, by_image(study.samples)
    first = {(one.domain, one.id) for some in pictures.values() for one in [min(some, key=lambda x: (x.domain, x.id))]}
    for row in found.sample["vision.mlp.act"].tolist():
        assert all((found.samples[number].domain, found.samples[number].id) in first for number in row)


def test_maps_are_those_of_the_batch(study):
    """At the middles of the cells, which are middles of pixels, in the same box as `patch_map` and `tower_map`."""
    found, lens, compared = study.found, study.lens, 0
    by_id = {(domain, one.id): one for domain, some in study.samples.items() for one in some}
    for site, row, layer, neuron, rank in each(found):
        shown = found.samples[int(found.sample[site][row, rank])]
        sample, position = by_id[shown.domain, shown.id], int(found.position[site][row, rank])
        values = study.seen[sample.domain, sample.id][site][layer][:, neuron]
        batch, _ = encode(lens, [sample], "identification")
        assert batch is not None
        made, box = found.maps[site][row, rank], found.box[site][row, rank]
        assert int(found.picture[site][row, rank]) == 0
        llm = site == "llm.mlp.act"
        group = "vision" if site.startswith("vision") else "projector"
        boxes = batch.boxes() if llm else torch.full((1, 5), torch.nan)
        boxes = batch.tower_boxes(0, group) if site.startswith(("vision", "projector")) else boxes
        if bool(boxes[:, 1:].isnan().all()):
            assert not made.any()
            assert box.isnan().all()
            assert float(found.map_maximum[site][row, rank]) == 0
            continue
        ((height, width),) = batch.picture_sizes()
        whole = batch.patch_map(values) if llm else batch.tower_map(values, 0, 0, group)
        middles = whole[height // SIDE // 2 :: height // SIDE, width // SIDE // 2 :: width // SIDE]
        here = torch.tensor(batch.positions("image", 0)) if llm else torch.arange(len(boxes))
        placed = here[~boxes[:, 1:].isnan().any(1)]
        largest = float(values[placed].clamp(min=0).max())
        assert float(found.map_maximum[site][row, rank]) == pytest.approx(largest, rel=1e-4, abs=1e-6)
        due = (255 * middles.nan_to_num(nan=0.0).clamp(min=0) / max(largest, 1e-30)).round().int()
        own = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        if position in placed.tolist():
            edge = boxes[here.tolist().index(position), 1:] / torch.tensor([width, height, width, height])
            torch.testing.assert_close(box, edge.clamp(0, 1))
            left, top, right, bottom = (SIDE * float(one) for one in edge)
            rows, columns = torch.arange(SIDE)[:, None] + 0.5, torch.arange(SIDE)[None] + 0.5
            own = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
            own |= ((rows - (top + bottom) / 2).abs() <= 0.5) & ((columns - (left + right) / 2).abs() <= 0.5)
            assert (made[own] == (255 if largest > 0 else 0)).any()
            # The cell that holds the largest lies in the box.
            assert own.flatten()[made.flatten().argmax()] or not made.any()
        else:
            assert box.isnan().all()
        assert ((made.int() - due).abs()[~own] <= 1).all(), (site, layer, neuron)
        compared += 1
    assert compared > 20 or lens.name == "embedded/instructblip"


def test_what_is_around_a_word_and_what_the_prompt_reads(study):
    found, lens = study.found, study.lens
    for site, row, layer, neuron, rank in each(found):
        around = found.around[site][row, rank]
        if site != "llm.mlp.act":
            assert not around.any()
            continue
        shown = found.samples[int(found.sample[site][row, rank])]
        values = study.seen[shown.domain, shown.id][site][layer][:, neuron].clamp(min=0)
        at = int(found.position[site][row, rank])
        near = [float(values[one]) if 0 <= one < len(values) else 0 for one in range(at - AROUND, at + AROUND + 1)]
        due = 255 * torch.tensor(near) / max(*near, 1e-30)
        assert ((around - due).abs() <= 1).all()
    by_id = {(domain, one.id): one for domain, some in study.samples.items() for one in some}
    for shown in found.samples:
        sample = by_id[shown.domain, shown.id]
        digest = hashlib.sha256(sample.images[0].read_bytes()).hexdigest()
        batch, _ = encode(lens, [sample], "identification")
        assert batch is not None
        assert shown.images == ((digest, *batch.picture_sizes()[0]),)
        assert (shown.question, shown.answers) == (sample.question, sample.answers)
        words = {first + place: word for first, run in shown.tokens for place, word in enumerate(run)}
        assert sorted(words) == batch.positions("text", 0)
        ids = batch.inputs["input_ids"][0]
        for place, word in words.items():
            text = lens.processor.tokenizer.decode(ids[place])
            assert word == text.strip() or not text.strip() or not text.strip().isprintable()


def test_any_batches_packed_or_not_and_any_order_of_folds(study):
    """The same questions and positions, and of pieces folded in any order the same bits."""
    lens, chosen = study.lens, listed(study.lens, study.neurons)
    samples = study.samples["medical"]
    plans = [
        plan_count(lens, samples, batch_size=size, exact=exact) for size, exact in ((1, True), (7, True), (5, False))
    ]
    tops = [read_tops(lens, plan, chosen, K) for plan in plans]
    for site in chosen:
        for other in tops[1:]:
            assert torch.equal(tops[0].sample[site], other.sample[site])
            torch.testing.assert_close(tops[0].activation[site], other.activation[site], rtol=1e-4, atol=1e-6)
            assert torch.equal(tops[0].position[site], other.position[site])
    read = top_read(plans[0].steps, K, chosen)
    held = top_steps(lens, plans[0], read, Memory(), 0, None, lambda some, title: some, None)
    draw = random.Random(0)
    for _ in range(4):
        parts = [one.piece.tensors for one in held]
        while len(parts) > 1:
            draw.shuffle(parts)
            parts = [read.fold(parts[0], parts[1]), *parts[2:]]
        whole = parts[0]
        due = held[0].piece.tensors
        for one in held[1:]:
            due = read.fold(due, one.piece.tensors)
        assert {name: value.tolist() for name, value in whole.items()} == {
            name: value.tolist() for name, value in due.items()
        }


def test_many_forwards_of_the_second_pass_are_one(study, monkeypatch):
    """Where a batch has more examples than are held at a time."""
    monkeypatch.setattr(example_values, "CELLS", 500)
    some = {"medical": study.samples["medical"][:4]}
    masks = {site: mask for site, mask in study.neurons.items() if site != "qformer.text.act"}
    parted = read_examples(study.lens, some, masks, K, batch_size=4)
    monkeypatch.undo()
    whole = read_examples(study.lens, some, masks, K, batch_size=4)
    for name, tensor in whole.packed()[0].items():
        assert torch.equal(tensor, parted.packed()[0][name]) or name.startswith(("activation", "box")), name


def test_what_cannot_be_chosen_is_refused(study):
    lens, samples = study.lens, study.samples
    site = "llm.mlp.act"
    with pytest.raises(UnknownName, match="site of neurons"):
        read_examples(lens, samples, {"llm.residual": study.neurons[site]})
    with pytest.raises(InvalidValue, match=re.escape("the mask of llm.mlp.act is bool [1, 3]")):
        read_examples(lens, samples, {site: torch.ones(1, 3, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match="no neuron is chosen"):
        read_examples(lens, samples, {site: torch.zeros_like(study.neurons[site])})
    with pytest.raises(InvalidValue, match="GiB of maps"):
        read_examples(lens, samples, {site: torch.ones_like(study.neurons[site])}, 10**6)
    with pytest.raises(InvalidValue, match="top is 0; keep at least 1"):
        read_examples(lens, samples, study.neurons, 0)
