"""Where an intervention is narrowed to, in the order asked, against plain hooks."""

from __future__ import annotations

import numpy
import torch
from conftest import mixed_batch
from hooks import hooked, neuron_paths, outputs

from interventions import Graph, add_vector, count_active, keep, writes

NEW = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@writes("llm.mlp.act")
def halve(act):
    return act / 2


def test_positions_come_in_the_order_asked(lens):
    batch = mixed_batch(lens)
    path = neuron_paths(lens)["llm.mlp.act"][0].removesuffix(".mlp.act_fn")
    hidden = outputs(lens.module, [path], lambda: lens.module(**batch.inputs))[path][0]
    last = batch.prompt_length - 1
    for asked, columns in (
        ([5, 2], [5, 2]),
        ([-1, 0, 7], [last, 0, 7]),
        ((3,), [3]),
        ({9, 4}, [4, 9]),
        (range(4, 1, -1), [4, 3, 2]),
        (slice(2, 9, 3), [2, 5, 8]),
        (slice(5, 2, -1), [5, 4, 3]),
        (torch.tensor([6, 1]), [6, 1]),
    ):
        out = lens.run(keep.at(layers=0, positions=asked), batch)["keep", "llm.residual"][0]
        assert torch.equal(out[0], hidden[:, columns]), asked


def test_a_write_sees_positions_in_the_order_asked(lens):
    batch = mixed_batch(lens)
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))

    @writes("llm.residual")
    def put(hidden, rows):
        return rows.expand_as(hidden)

    path = neuron_paths(lens)["llm.mlp.act"][1].removesuffix(".mlp.act_fn")

    def replaced(hidden):
        hidden = hidden.clone()
        hidden[:, 7], hidden[:, 3] = rows[0], rows[1]
        return hidden

    with hooked(lens.module, {path: replaced}), torch.no_grad():
        expected = lens.module(**batch.inputs).logits
    graph = put.at(layers=1, positions=[7, 3]).bind(rows=rows)
    assert lens.check(graph, batch).tried == {}
    assert torch.equal(lens.run(graph, batch, logits=True).logits[0], expected)


def test_a_write_acts_at_layers_in_any_order(lens):
    batch = mixed_batch(lens)
    logits = [
        lens.run(halve.at(layers=layers), batch, logits=True).logits[0]
        for layers in ([0, 2], [2, 0], [-1, 0], {0, 2}, torch.tensor([2, 0]), numpy.array([0, 2]))
    ]
    assert all(torch.equal(one, logits[0]) for one in logits)
    assert not torch.equal(logits[0], lens.run(Graph(), batch, logits=True).logits[0])


def test_positions_of_generated_tokens(lens):
    batch = mixed_batch(lens)
    path = neuron_paths(lens)["llm.mlp.act"][1].removesuffix(".mlp.act_fn")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 8
    start, passes = batch.prompt_length, []

    def steer(hidden):
        passes.append(hidden.shape[1])
        return hidden + vector if len(passes) == 3 else hidden

    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    with hooked(lens.module, {path: steer}):
        expected = lens.module.generate(**inputs, **NEW)[:, start:]
    assert passes == [start, 1, 1]
    steered = add_vector.bind(vector=vector).at(layers=1)
    for narrowed in (steered.at(positions=start + 1), steered.at(steps=2)):
        lens.check(narrowed, batch, max_new_tokens=3)
        out = lens.generate(narrowed, batch, **NEW)
        assert [row.tolist() for row in out.tokens] == [[t for t in row if t != 0] for row in expected.tolist()]
    # The last token has a position and a step too, in the forward that reads the answers.
    read = lens.generate(keep.at(positions=[start + 2, start], steps="generated"), batch, **NEW)["keep", "llm.residual"]
    whole = lens.generate(keep.at(steps="generated"), batch, **NEW)["keep", "llm.residual"]
    assert torch.equal(read[0], whole[0][:, :, [2, 0]])
    last = lens.generate(keep.at(steps=3), batch, **NEW)["keep", "llm.residual"]
    assert torch.equal(last[0], whole[0][:, :, [2]])
    # A write there changes what is read there.
    changed = lens.generate(halve.at(steps=3) | count_active.at(steps="all") | keep.at(steps=3), batch, **NEW)
    assert not torch.equal(changed["keep", "llm.residual"][0], last[0])


def test_beams_are_harmless_where_there_are_none(lens):
    batch = mixed_batch(lens)
    one = lens.run(count_active.at(all_beams=True) | halve.at(all_beams=True), batch)
    other = lens.run(count_active | halve, batch)
    assert torch.equal(one["count_active"], other["count_active"])


def test_a_cache_comes_in_the_order_asked(lens):
    batch = mixed_batch(lens)
    asked = ["llm.residual", "vision.residual", "llm.embedding"]
    _, cache = lens.run_with_cache(batch, asked)
    assert list(cache) == asked
    _, cache = lens.run_with_cache(batch, ["llm.residual", "*.residual"])
    assert list(cache) == ["llm.residual", "vision.residual"]
