"""Generation with 5 beams: reads and writes at every step, against plain hooks."""

from __future__ import annotations

import pytest
import torch
from conftest import mixed_batch
from hooks import hooked, neuron_paths, outputs

from interventions import add_vector, count_active, count_active_by_kind, per_layer, zero_neurons

BEAMS = {"num_beams": 5, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def own(lens, batch):
    """What the model generates by itself."""
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    return lens.module.generate(**inputs, **BEAMS)


def masks(lens, site="llm.mlp.act"):
    place = lens.architecture.place(site)
    shape = (place.sizes["neuron"],) if place.layers is None else (place.layers, place.sizes["neuron"])
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.3


def zeroing(mask):
    return lambda out: out.masked_fill(mask, 0)


def test_plain_generation_is_the_models_own(lens):
    batch = mixed_batch(lens)
    out = lens.generate(count_active, batch, **BEAMS)
    ids = own(lens, batch)[:, batch.prompt_length :]
    assert out.text == [text.strip() for text in lens.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert [tokens.tolist() for tokens in out.tokens] == [[t for t in row if t != 0] for row in ids.tolist()]


def test_reads_of_the_prompt_see_each_sample_once(lens):
    batch = mixed_batch(lens)
    generated = lens.generate(count_active.at("*.act"), batch, **BEAMS)
    forward = lens.run(count_active.at("*.act"), batch)
    assert set(generated) == set(forward)
    for key in forward:
        assert torch.equal(generated[key], forward[key]), key


def test_writes_act_on_every_step_of_every_beam(lens):
    batch = mixed_batch(lens)
    all_masks = {site: masks(lens, site) for site in neuron_paths(lens)}
    out = lens.generate(zero_neurons.at("*.act").bind(neurons=per_layer(all_masks)), batch, **BEAMS)
    hooks = {}
    for site, paths in neuron_paths(lens).items():
        rows = all_masks[site] if lens.architecture.place(site).layers is not None else all_masks[site][None]
        hooks |= {path: zeroing(row) for path, row in zip(paths, rows, strict=True)}
    with hooked(lens.module, hooks):
        expected = own(lens, batch)[:, batch.prompt_length :]
    plain = own(lens, batch)[:, batch.prompt_length :]
    assert not torch.equal(expected, plain), "the neurons make no difference, so this test could not fail"
    assert [tokens.tolist() for tokens in out.tokens] == [[t for t in row if t != 0] for row in expected.tolist()]


@pytest.mark.parametrize("steps", ["prompt", "generated"])
def test_writes_can_be_narrowed_to_some_steps(lens, steps):
    batch = mixed_batch(lens)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 8
    out = lens.generate(add_vector.bind(vector=vector).at(layers=1, steps=steps), batch, **BEAMS)
    path = neuron_paths(lens)["llm.mlp.act"][1].removesuffix(".mlp.act_fn")

    def steer(hidden):
        is_prompt = hidden.shape[1] > 1
        return hidden + vector if is_prompt == (steps == "prompt") else hidden

    with hooked(lens.module, {path: steer}):
        expected = own(lens, batch)[:, batch.prompt_length :]
    assert [tokens.tolist() for tokens in out.tokens] == [[t for t in row if t != 0] for row in expected.tolist()]


def test_all_beams_counts_what_raw_hooks_count(lens):
    batch = mixed_batch(lens)
    paths = neuron_paths(lens)["llm.mlp.act"]
    out = lens.generate(count_active.at(steps="all", all_beams=True), batch, **BEAMS)
    seen = outputs(lens.module, paths, lambda: own(lens, batch))
    real = batch.inputs["attention_mask"].bool().repeat_interleave(5, dim=0)
    expected = []
    for path in paths:
        prompt, *steps = seen[path]
        expected.append((prompt[real] > 0).sum(0) + sum((step > 0).sum((0, 1)) for step in steps))
    assert torch.equal(out["count_active", "llm.mlp.act"], torch.stack(expected))


def test_generated_tokens_are_read_in_one_teacher_forced_forward(lens):
    batch = mixed_batch(lens)
    mask = masks(lens)
    graph = zero_neurons.bind(neurons=per_layer(mask)) | count_active_by_kind.at(steps="all")
    out = lens.generate(graph, batch, **BEAMS)
    paths = neuron_paths(lens)["llm.mlp.act"]
    with hooked(lens.module, {path: zeroing(row) for path, row in zip(paths, mask, strict=True)}):
        ids = own(lens, batch)
        answer = (ids[:, batch.prompt_length :] != 2) & (ids[:, batch.prompt_length :] != 0)
        attention = torch.cat([batch.inputs["attention_mask"], answer.long()], dim=1)
        ids = ids.clone()
        ids[:, batch.prompt_length :][~answer] = 0
        inputs = {**batch.inputs, "input_ids": ids, "attention_mask": attention}
        inputs["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
        seen = outputs(lens.module, paths, lambda: lens.module(**inputs))
    image = batch.inputs["input_ids"] == lens.module.config.image_token_index
    none = torch.zeros_like(answer)
    real = batch.inputs["attention_mask"].bool()
    kinds = [
        torch.cat([image & real, none], 1),
        torch.cat([~image & real, none], 1),
        torch.cat([torch.zeros_like(real), answer], 1),
    ]
    # Hooks registered later run later: what they see is already zeroed.
    expected = torch.stack([torch.stack([(seen[path][0][kind] > 0).sum(0) for kind in kinds]) for path in paths])
    assert torch.equal(out["count_active_by_kind", "llm.mlp.act"], expected)
    generated = lens.generate(
        zero_neurons.bind(neurons=per_layer(mask)) | count_active.at(steps="generated"), batch, **BEAMS
    )
    assert torch.equal(generated["count_active", "llm.mlp.act"], expected[:, 2])


def test_logits_of_answers_come_from_the_same_forward(lens):
    batch = mixed_batch(lens)
    out = lens.generate(
        count_active, batch, logits=True, num_beams=1, max_new_tokens=3, min_new_tokens=3, do_sample=False
    )
    assert out.logits[0].shape[:2] == (3, 3)
    scores = out.logits[0].clone()
    scores[:, :, 2] = -torch.inf
    assert scores.argmax(-1).tolist() == [tokens.tolist() for tokens in out.tokens]


def test_generation_leaves_the_model_as_it_was(lens):
    batch = mixed_batch(lens)
    with torch.no_grad():
        before = lens.module(**batch.inputs).logits
    lens.generate(zero_neurons.bind(neurons=per_layer(masks(lens))), batch, **BEAMS)
    with torch.no_grad():
        assert torch.equal(lens.module(**batch.inputs).logits, before)
