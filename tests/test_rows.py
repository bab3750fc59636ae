"""Rows: an intervention acts on some rows of a batch, in the order given; everything is what plain hooks see."""

from __future__ import annotations

from functools import cache
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures, tiny_lens
from hooks import hooked, outputs
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions import (
    Graph,
    batch_field,
    count_active_by_kind,
    keep,
    knock_out_attention,
    load_graph,
    patch_activations,
    per_layer,
    reads,
    save_graph,
    writes,
    zero_neurons,
)
from interventions.errors import InvalidValue, OutOfRange, UnknownName
from mmneuron_lens import Lens
from mmneuron_lens.runtime.compile import compile_graph
from mmneuron_lens.runtime.shapes import ShapeError
from mmneuron_lens.wire import execute
from mmneuron_lens.wire.forward import make_context

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NAMES = (*newer_models.ARCHITECTURES, "llava_next", "instructblip", "llava", "blip2")
SIZES = ((40, 56), (64, 30), (33, 31))
QUESTIONS = ["Is it red?", "how many cars are there?", "why"]
BEAMS: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}


@cache
def lens_of(name: str) -> Lens:
    return Lens.wrap(*getattr(newer_models if hasattr(newer_models, name) else tiny_models, name)())


def batch_of(lens: Lens):
    return lens.encode(pictures(*SIZES), QUESTIONS)


def spans_of(lens: Lens, site: str) -> tuple[int, list[range]]:
    """The axis and the places of each image's part of a site's value: by how much there is of each image alone."""
    axis = 1 if site.split(".")[0] in ("vision", "projector") and not lens.architecture.facts["patches"] else 0
    start, spans = 0, []
    for image, question in zip(pictures(*SIZES), QUESTIONS, strict=True):
        value = lens.run(keep.at(site), lens.encode([image], [question]))["keep", site][0]
        size = value.shape[axis + (lens.architecture.place(site).layers is not None)]
        spans.append(range(start, start + size))
        start += size
    return axis, spans


@pytest.mark.parametrize("name", NAMES)
def test_a_read_sees_the_rows_in_their_order_at_every_site(name):
    lens = lens_of(name)
    batch, facts = batch_of(lens), lens.architecture.facts
    sites = [site for site in lens.sites if not site.endswith("pattern")]
    sites = [site for site in sites if facts["patches"] or site != "vision.pooled"]
    whole = lens.run(keep.at(sites), batch)
    found = lens.run(keep.at(sites, rows=[2, 0]), batch)
    for site in sites:
        axis, spans = spans_of(lens, site)
        places = [place for row in (2, 0) for place in spans[row]]
        layered = lens.architecture.place(site).layers is not None
        expected = whole["keep", site][0].index_select(axis + layered, torch.tensor(places))
        assert torch.equal(found["keep", site][0], expected), site


@pytest.mark.parametrize("name", NAMES)
def test_a_write_changes_the_rows_alone(name):
    lens = lens_of(name)
    batch = batch_of(lens)

    @writes("llm.mlp.act")
    def negate(value: Float[Tensor, "*where neuron"]) -> Float[Tensor, "*where neuron"]:
        return -value

    for site in ("llm.residual", "vision.mlp.act"):
        axis, spans = spans_of(lens, site)
        path = lens.architecture.place(site).path.format(l=0)
        packed = site.startswith("vision") and not lens.architecture.facts["patches"]

        def change(held, axis=axis, spans=spans, packed=packed):
            hidden = (held[0] if isinstance(held, tuple) else held).clone()
            where = list(spans[1])
            # A packed tower's module may hold its patches with or without an axis of rows.
            index = (slice(None), where) if axis and hidden.ndim == 3 else (where,)
            hidden[index] = -hidden[index]
            return (hidden, *held[1:]) if isinstance(held, tuple) else hidden

        with torch.no_grad(), hooked(lens.module, {path: change}):
            expected = lens.module(**batch.inputs).logits
        found = lens.run(negate.at(site, layers=0, rows=1), batch, logits=True).logits[0]
        assert torch.equal(found, expected), site
        plain = lens.run(Graph(), batch, logits=True).logits[0]
        assert torch.equal(found[[0, 2]], plain[[0, 2]])
        assert not torch.equal(found[1], plain[1]), site


def test_fields_and_kinds_are_those_of_the_rows(lens):
    batch = batch_of(lens)
    batch = batch.with_fields(mark=torch.arange(batch.inputs["input_ids"].numel()).view(3, -1))

    @reads("llm.residual", over="list", mark=batch_field("mark"), kind=batch_field("kind"))
    def marks(
        value: Float[Tensor, "*where hidden"], mark: Int[Tensor, "*where"], kind: Bool[Tensor, "*where kind"]
    ) -> Int[Tensor, "*where"]:
        return mark * 10 + kind.int().argmax(-1)

    mark, kind = batch.fields["llm"]["mark"], batch.fields["llm"]["kind"]
    expected = mark * 10 + kind.int().argmax(-1)
    narrowed = marks.at(layers=0, rows=[2, 1])
    assert torch.equal(lens.run(narrowed, batch)["marks"][0][0], expected[[2, 1]])
    columns = lens.run(narrowed.at(positions=[-1, 3]), batch)["marks"][0][0]
    assert torch.equal(columns, expected[[2, 1]][:, [-1, 3]])
    one = lens.run(narrowed.at(positions=slice(1, 9, 2)), batch)["marks"][0][0]
    assert torch.equal(one, expected[[2, 1], 1:9:2])
    images = lens.run(narrowed.at(positions="image"), batch)["marks"][0][0]
    assert torch.equal(images, torch.cat([expected[row][kind[row, :, 0]] for row in (2, 1)]))


def test_counts_of_rows_add_up_to_those_of_all(lens):
    batch, counting = batch_of(lens), count_active_by_kind.at("*.act")
    whole = lens.run(counting, batch)
    apart = [lens.run(counting.at(rows=rows), batch) for rows in ([0], [2, 1])]
    for key in whole:
        assert torch.equal(apart[0][key] + apart[1][key], whole[key]), key
        assert bool(apart[0][key].sum() > 0)


def test_every_beam_of_a_row_is_written(lens):
    batch = batch_of(lens)
    mask = torch.rand(3, 48, generator=torch.Generator().manual_seed(3)) < 0.5
    paths = [path for _, path in lens.architecture.place("llm.mlp.act").paths()]

    def off(act, mask):
        # Rows of a generation are samples by beams.
        beams = act.shape[0] // 3
        act = act.clone()
        act[beams : 2 * beams] = act[beams : 2 * beams].masked_fill(mask, 0)
        return act

    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}

    def generated() -> list[list[int]]:
        ids = lens.module.generate(**inputs, **BEAMS)
        ids = ids[:, batch.prompt_length :] if ids.shape[1] > batch.prompt_length else ids
        return [[token for token in row if token != 0] for row in ids.tolist()]

    hooks = {path: (lambda act, mask=one: off(act, mask)) for path, one in zip(paths, mask, strict=True)}
    with hooked(lens.module, hooks):
        expected = generated()
    plain = generated()
    assert expected[1] != plain[1], "the neurons make no difference, so this test could not fail"
    assert [expected[0], expected[2]] == [plain[0], plain[2]]
    out = lens.generate(zero_neurons.bind(neurons=per_layer(mask)).at(rows=1), batch, **BEAMS)
    assert [tokens.tolist() for tokens in out.tokens] == expected


def test_reads_of_generated_tokens_and_of_every_beam(lens):
    batch = batch_of(lens)
    settings = {**BEAMS, "min_new_tokens": 4}
    for narrowed in (
        {"steps": "generated"},
        {"steps": [0, 2]},
        {"steps": "all", "positions": [-1, batch.prompt_length]},
    ):
        reading = keep.at("llm.residual", layers=1, **narrowed)
        whole = lens.generate(reading, batch, **settings)["keep"][0][0]
        found = lens.generate(reading.at(rows=[2, 0]), batch, **settings)["keep"][0][0]
        assert torch.equal(found, whole[[2, 0]]), narrowed
    every = keep.at("llm.residual", layers=1, steps="all", all_beams=True)
    whole = lens.generate(every, batch, **settings)["keep"][0]
    found = lens.generate(every.at(rows=[2, 0]), batch, **settings)["keep"][0]
    beams = [6, 7, 8, 0, 1, 2]
    assert len(found) == len(whole)
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one[0], other[0][beams])


def test_a_rewire_is_given_the_rows_of_the_source(lens):
    batch, source = batch_of(lens), lens.encode(pictures(*SIZES, seed=5), QUESTIONS)
    path = lens.architecture.place("llm.residual").path.format(l=1)
    held = outputs(lens.module, [path], lambda: lens.module(**source.inputs))[path][0]
    held = held[0] if isinstance(held, tuple) else held

    def change(now):
        hidden = (now[0] if isinstance(now, tuple) else now).clone()
        hidden[[2, 0], -3:] = held[[2, 0], -3:]
        return (hidden, *now[1:]) if isinstance(now, tuple) else hidden

    with torch.no_grad(), hooked(lens.module, {path: change}):
        expected = lens.module(**batch.inputs).logits
    patch = patch_activations.at(layers=1, rows=[2, 0], positions=slice(-3, None))
    assert torch.equal(lens.run(patch, batch, sources=source, logits=True).logits[0], expected)
    assert not torch.equal(expected, lens.run(Graph(), batch, logits=True).logits[0])


def test_attention_of_one_row_is_cut(lens):
    batch = batch_of(lens)
    image, text = batch.fields["llm"]["kind"][..., 0], batch.fields["llm"]["kind"][..., 1]
    cut = knock_out_attention.bind(queries=text[[1]], keys=image[[1]]).at(layers=[1, 2], rows=1)
    everywhere = knock_out_attention.bind(queries=text, keys=image).at(layers=[1, 2])
    found = lens.run(cut, batch, logits=True).logits[0]
    torch.testing.assert_close(found[1], lens.run(everywhere, batch, logits=True).logits[0][1])
    plain = lens.run(Graph(), batch, logits=True).logits[0]
    torch.testing.assert_close(found[[0, 2]], plain[[0, 2]])
    assert (found[1] - plain[1]).abs().max() > 1e-3


def test_packed_rows_are_rows_of_images():
    lens = tiny_lens("llava_next")
    batch = lens.pack([([image], ["what?", "what is it?"]) for image in pictures(*SIZES[:2])])
    whole = lens.run(keep.at(["llm.residual", "projector.act"]), batch)
    found = lens.run(keep.at(["llm.residual", "projector.act"], rows=1), batch)
    assert torch.equal(found["keep", "llm.residual"][0], whole["keep", "llm.residual"][0][:, 1:])
    _, spans = spans_of(lens, "projector.act")
    assert torch.equal(found["keep", "projector.act"][0], whole["keep", "projector.act"][0][list(spans[1])])


def test_what_no_row_has_is_refused_before_anything_runs(monkeypatch):
    lens, packing = tiny_lens("llava_next"), tiny_lens("instructblip")
    image = pictures(SIZES[0])[0]
    batch, mixed = batch_of(lens), lens.encode([[image], []], ["one", "none"])
    shared = packing.pack([([image], ["what?", "why?"])])
    qwen = lens_of("qwen2_vl")

    @writes("llm.mlp.act")
    def add_constant(value: Float[Tensor, "*where neuron"], constant: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value + constant

    added = add_constant.bind(constant=torch.zeros(3, 1, 48))
    for one in (lens, packing, qwen):
        monkeypatch.setattr(one.module, "forward", None)
    for used, graph, given, error, said in (
        (
            lens,
            keep.at(rows=3),
            batch,
            OutOfRange,
            "keep at llm.residual: there is no row 3; the batch has rows 0 to 2",
        ),
        (
            lens,
            keep.at("vision.residual", rows=1),
            mixed,
            InvalidValue,
            "row 1 has no image, so nothing there is of it",
        ),
        (
            lens,
            keep.at("llm.residual", rows=1, positions="image"),
            mixed,
            UnknownName,
            "none of its rows has 'image' positions in this batch",
        ),
        (packing, keep.at("vision.residual", rows=1), shared, InvalidValue, "rows of this batch share images"),
        (lens, keep.at("vision.residual", rows=1, positions=99), batch, OutOfRange, "there is no position 99"),
        (qwen, keep.at("vision.residual", rows=2, positions=90), batch_of(qwen), OutOfRange, "there is no position 90"),
        (lens, added.at(rows=[1, 0]), batch, ShapeError, "add_constant does not fit llm.mlp.act"),
    ):
        with pytest.raises(error) as raised:
            used.check(graph, given)
        assert said in str(raised.value)
    assert lens.check(added, batch).proved


def test_a_write_leaves_the_models_own_tensor_as_it_was():
    lens = tiny_lens("llava_next")
    batch = batch_of(lens)
    (plan,) = compile_graph(Graph((zero_neurons.bind(neurons=torch.ones(4).bool()).at(rows=1),)), lens.architecture)
    context = make_context(batch.plain(), 1, {}, None, [])
    value = torch.arange(24.0).view(3, 2, 4)
    before, arguments = value.clone(), {"neurons": torch.ones(4).bool()}
    with torch.no_grad():
        made, own = execute.write(plan["acts"][0], plan, context, 0, value, dict(arguments))
        again, _ = execute.write({**plan["acts"][0], "rows": (2,)}, plan, context, 0, made, dict(arguments), own)
    assert torch.equal(value, before)
    # Ours is changed in place: a write of each of many rows copies the value once.
    assert own
    assert again is made
    assert again.sum((1, 2)).tolist() == [before[0].sum(), 0, 0]


def test_rows_are_saved(tmp_path):
    graph = Graph((keep.at("llm.norm", rows=[2, 0]),))
    save_graph(graph, tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == graph
