"""Several graphs in one forward: each result is that of the graph run alone, and of plain hooks on the module."""

from __future__ import annotations

from functools import cache
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import mixed_batch, pictures, tiny_lens
from hooks import hooked, outputs
from jaxtyping import Float, Int
from torch import Tensor

from interventions import (
    Graph,
    add_vector,
    batch_field,
    count_active,
    count_active_by_kind,
    keep,
    module,
    patch_activations,
    per_layer,
    reads,
    sweep,
    zero_neurons,
)
from interventions.errors import InvalidType, InvalidValue, NotFinite
from mmneuron_lens import Lens, Result
from mmneuron_lens.architectures.architecture import Architecture
from mmneuron_lens.runtime import checked, many
from mmneuron_lens.wire import together, trace

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NAMES = (*newer_models.ARCHITECTURES, "llava_next", "instructblip", "llava", "blip2")
QUESTIONS = ["Is it red?", "how many cars are there?", "why"]
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
BEAMS: dict[str, Any] = {**GREEDY, "num_beams": 3}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@cache
def lens_of(name: str) -> Lens:
    if name.startswith("embedded/"):
        return Lens(name)
    return Lens.wrap(*getattr(newer_models if hasattr(newer_models, name) else tiny_models, name)())


def batch_of(lens: Lens):
    return lens.encode(pictures((40, 56), (64, 30), (33, 31)), QUESTIONS)


def zeroed(lens: Lens, site: str, seed: int, share: float = 0.3) -> Graph:
    """A share of the neurons of a site off."""
    place = lens.architecture.place(site)
    shape = (place.layers or 1, place.sizes["neuron"])
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    return Graph((zero_neurons.at(site).bind(neurons=per_layer(mask if place.layers else mask[0])),))


def graphs_of(lens: Lens, before: bool = True) -> list[Graph]:
    """Graphs of every kind: nothing, writes of the language model and before it, reads everywhere."""
    counting = count_active_by_kind.at("*.act")
    some = [
        Graph(),
        zeroed(lens, "llm.mlp.act", 1) | counting,
        keep.at("llm.residual", rows=[2, 0]) | count_active.at("llm.mlp.act", positions="image"),
        zeroed(lens, "llm.mlp.act", 2).interventions[0].at(rows=1) | keep.at("llm.residual", positions=[-1, -2]),
    ]
    if before:
        some.insert(2, zeroed(lens, "vision.mlp.act", 3) | counting | keep.at("llm.embedding"))
        some.append(zeroed(lens, "vision.mlp.act", 4) | keep.at("vision.residual", rows=[1]))
    return some


def assert_same(found: Result, expected: Result) -> None:
    """Answers, tokens and counts exactly; other values to rounding."""
    assert found.text == expected.text
    assert [one.tolist() for one in found.tokens] == [one.tolist() for one in expected.tokens]
    assert set(found) == set(expected)
    for key in expected:
        compare(found[key], expected[key])
    assert len(found.logits) == len(expected.logits)
    for one, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def compare(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor) and not expected.is_floating_point():
        assert torch.equal(found, expected)
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    else:
        torch.testing.assert_close(found, expected, **CLOSE)


def rows_seen(lens: Lens, run: Any) -> list[int]:
    """How many rows, or patches where all stand in one, the first layer of the tower is given in each pass."""
    place = lens.architecture.place("vision.residual")
    seen: list[int] = []
    layer = lens.module.get_submodule(place.path.format(l=0))

    def look(_module, positional, keywords):
        hidden = positional[0] if positional else keywords["hidden_states"]
        seen.append(hidden.shape[:-1].numel())

    handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", [*NAMES, "embedded/llava-next", "embedded/instructblip"])
def test_each_result_is_that_of_a_run_alone(name):
    lens = lens_of(name)
    batch, graphs = batch_of(lens), graphs_of(lens)
    for found, graph in zip(lens.run(graphs, batch, logits=True), graphs, strict=True):
        assert_same(found, lens.run(graph, batch, logits=True))


@pytest.mark.parametrize("name", NAMES)
def test_generations_are_those_alone(name):
    lens = lens_of(name)
    batch, graphs = batch_of(lens), graphs_of(lens)
    graphs.append(zeroed(lens, "llm.mlp.act", 5) | keep.at("llm.residual", layers=1, steps="generated"))
    # A random model may answer with the image token, which no teacher-forced forward could read.
    settings = {**BEAMS, "suppress_tokens": [lens.architecture.facts["image_token"]]}
    for found, graph in zip(lens.generate(graphs, batch, **settings), graphs, strict=True):
        assert_same(found, lens.generate(graph, batch, **settings))


@pytest.mark.parametrize("name", [*NAMES, "embedded/llava-next", "embedded/instructblip"])
def test_the_tower_runs_on_one_copy_where_no_graph_changes_it(name):
    lens = lens_of(name)
    batch = batch_of(lens)
    alone = rows_seen(lens, lambda: lens.run(Graph(), batch))
    behind, both = graphs_of(lens, before=False), graphs_of(lens)
    assert rows_seen(lens, lambda: lens.run(behind, batch)) == alone
    assert rows_seen(lens, lambda: lens.generate(behind, batch, **BEAMS)) == alone
    # Those that change the tower run apart, two copies of it.
    assert sorted(rows_seen(lens, lambda: lens.run(both, batch))) == [alone[0], 2 * alone[0]]


def test_everything_is_repeated_where_no_module_is_said_to_run_once(monkeypatch):
    lens = tiny_lens("llava_next")
    batch, graphs = batch_of(lens), graphs_of(lens, before=False)
    made = lens.architecture
    plain = Architecture(made.name, made.places, {**made.facts, "once": ()})
    monkeypatch.setattr(type(lens.model), "architecture", plain, raising=False)
    object.__setattr__(lens.model, "architecture", plain)
    batch = batch_of(lens)
    alone = rows_seen(lens, lambda: lens.run(Graph(), batch))
    assert rows_seen(lens, lambda: lens.run(graphs, batch)) == [len(graphs) * alone[0]]
    for found, graph in zip(lens.run(graphs, batch, logits=True), graphs, strict=True):
        assert_same(found, lens.run(graph, batch, logits=True))


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", ["embedded/llava-next", "embedded/instructblip"])
def test_answers_of_different_lengths_over_several_batches(name, settings):
    """Of a trained model, whose answers end by themselves: no graph reads what another one's answer adds."""
    lens = lens_of(name)
    images = pictures((40, 56), (64, 30))
    batches = [lens.encode(images, ["Is it red?", "what is this?"]), lens.encode(images[:1], ["how many?"])]

    @reads("llm.residual", over="list", weight=batch_field("weight"))
    def positions(
        value: Float[Tensor, "row token hidden"], weight: Int[Tensor, "row token"]
    ) -> Int[Tensor, "row token"]:
        return weight

    reading = keep.at("llm.residual", layers=-1, steps="all") | positions.at(layers=0, steps="generated")
    graphs = [Graph(), *(zeroed(lens, "llm.mlp.act", seed, 0.5 + 0.25 * seed) for seed in range(3))]
    graphs = [graph | reading for graph in graphs]
    settings = {**settings, "max_new_tokens": 12}
    found = lens.generate(graphs, batches, logits=True, **settings)
    alone = [lens.generate(graph, batches, logits=True, **settings) for graph in graphs]
    lengths = {one.logits[0].shape[1] for one in alone}
    assert len(lengths) > 1, "all answers are of one length, so this test could not fail"
    for one, expected in zip(found, alone, strict=True):
        assert_same(one, expected)


@pytest.mark.parametrize("name", ["llava_next", "instructblip", "qwen2_5_vl"])
def test_a_heat_map_is_that_of_hooks(name):
    lens = lens_of(name)
    clean = lens.encode(pictures((32, 32), seed=1), ["is it red?"])
    corrupted = lens.encode(pictures((32, 32), seed=2), ["is it blu?"])
    places = [0, -1, clean.prompt_length // 2]

    @reads("llm.logits", over="list")
    def answer(logits: Float[Tensor, "row token vocabulary"]) -> Float[Tensor, " row"]:
        return logits[:, -1, 50]

    heat = sweep(patch_activations, layers=range(3), positions=places) | answer
    grid = heat.grid(lens.run(heat, corrupted, sources=clean), "answer")[..., 0]
    assert grid.shape == (3, 3)

    paths = [path for _, path in lens.architecture.place("llm.residual").paths()]

    def first(one):
        return one[0] if isinstance(one, tuple) else one

    residuals = outputs(lens.module, paths, lambda: lens.module(**clean.inputs))
    for layer, path in enumerate(paths):
        for column, place in enumerate(places):

            def patch(held, path=path, place=place):
                hidden = first(held).clone()
                hidden[:, place] = first(residuals[path][0])[:, place]
                return (hidden, *held[1:]) if isinstance(held, tuple) else hidden

            with torch.no_grad(), hooked(lens.module, {path: patch}):
                expected = lens.module(**corrupted.inputs).logits[0, -1, 50]
            torch.testing.assert_close(grid[layer, column], expected, **CLOSE)
    assert grid.std() > 0


def test_sources_run_once_for_all_graphs(monkeypatch):
    lens = tiny_lens("llava_next")
    source, batch = batch_of(lens), lens.encode(pictures((40, 56), (64, 30), (33, 31), seed=3), QUESTIONS)
    graphs = [*(sweep(patch_activations, layers=range(3), positions=[-1, "image"]) | keep.at("llm.norm")), Graph()]
    held: list[Any] = []
    once = trace.hold
    monkeypatch.setattr(together, "hold", lambda *given: held.append(given) or once(*given))
    found = lens.run(graphs, batch, sources=source, max_rows=6)
    assert len(held) == 1
    for one, graph in zip(found[:-1], graphs[:-1], strict=True):
        assert_same(one, lens.run(graph, batch, sources=source))
    assert_same(found[-1], lens.run(graphs[-1], batch))


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_rewires_of_several_rows_and_rows_of_ones_own(settings):
    lens = tiny_lens("llava_next")
    source, batch = batch_of(lens), lens.encode(pictures((40, 56), (64, 30), (33, 31), seed=3), QUESTIONS)
    graphs = [
        patch_activations.at(layers=1, rows=[2, 0]) | keep.at("llm.norm"),
        patch_activations.at("vision.residual", layers=0, rows=1) | keep.at("llm.norm", rows=[1, 2]),
        patch_activations.at("llm.mlp.act", layers=[0, 2], positions=[5, 3]) | keep.at("vision.residual", rows=2),
        patch_activations.at("vision.mlp.act") | keep.at("llm.norm"),
    ]
    found = lens.generate(graphs, batch, sources=source, **settings)
    for one, graph in zip(found, graphs, strict=True):
        assert_same(one, lens.generate(graph, batch, sources=source, **settings))


def test_packed_rows_and_shared_towers():
    for name in ("llava_next", "instructblip"):
        lens = tiny_lens(name)
        images = pictures((40, 56), (64, 30))
        rows = [([images[0]], ["what?", "what is it?"]), ([images[1]], ["who?"])]
        for batch in (lens.pack(rows), lens.pack(rows, cut=True)):
            graphs = [count_active.at("*.act"), zeroed(lens, "llm.mlp.act", 1) | count_active]
            graphs.append(zeroed(lens, "vision.mlp.act", 1) | count_active.at("*.act"))
            for found, graph in zip(lens.run(graphs, batch), graphs, strict=True):
                assert_same(found, lens.run(graph, batch))


def test_text_alone_and_images_of_some_rows():
    lens = tiny_lens("llava_next")
    images = pictures((40, 56), (64, 30))
    graphs = [Graph(), zeroed(lens, "llm.mlp.act", 1) | keep.at("llm.norm")]
    for batch in (
        lens.encode(None, ["text alone", "or not"]),
        lens.encode([[images[0]], [], [images[1], images[0]]], ["one", "none", "two of them"]),
    ):
        for found, graph in zip(lens.run(graphs, batch, logits=True), graphs, strict=True):
            assert_same(found, lens.run(graph, batch, logits=True))


def test_memory_is_bounded_by_rows():
    lens = tiny_lens("llava_next")
    batch = batch_of(lens)
    graphs = [zeroed(lens, "llm.mlp.act", seed) for seed in range(7)]
    path = "model.language_model.layers.0"
    for max_rows, expected in ((3, [3] * 7), (8, [6, 6, 6, 3]), (None, [21])):
        seen = outputs(lens.module, [path], lambda bound=max_rows: lens.run(graphs, batch, max_rows=bound))[path]
        assert [(one[0] if isinstance(one, tuple) else one).shape[0] for one in seen] == expected
    # 16,384 positions, of rows this long.
    assert many.Many(lens.model, graphs, False, {}, None).at_once(batch) == 16_384 // (3 * batch.prompt_length)


def test_graphs_of_one_form_are_proved_once(monkeypatch):
    lens = tiny_lens("llava_next")
    batch = batch_of(lens)
    proved = []
    real = checked.check_plans
    monkeypatch.setattr(checked, "check_plans", lambda *given: proved.append(1) or real(*given))
    lens.run(sweep(add_vector.bind(vector=torch.ones(32)), layers=range(3), positions=range(20)), batch)
    assert len(proved) == 1
    lens.run([add_vector.bind(vector=torch.ones(32)).at(positions=[1, 2])], batch)
    assert len(proved) == 2
    lens.run([add_vector.bind(vector=torch.ones(32)).at(positions=[-1, -2], layers=2)], batch)
    assert len(proved) == 2


def test_overflow_names_its_graph():
    lens = tiny_lens("llava_next")
    graphs = [Graph(), add_vector.bind(vector=torch.full((32,), torch.inf)).at(layers=1)]
    with pytest.raises(NotFinite, match=r"^graphs\[1\]: llm\.norm: activations at"):
        lens.generate(graphs, batch_of(lens), **GREEDY)


def test_a_function_that_raises_is_named_as_alone():
    lens = tiny_lens("llava_next")

    @reads("llm.mlp.act", over="list")
    def strict(act: Tensor) -> Tensor:
        if float(act.abs().max()) > 0:
            raise ArithmeticError("too large")
        return act

    with pytest.raises(ArithmeticError) as raised:
        lens.run([Graph(), strict], mixed_batch(lens))
    assert raised.value.__notes__ == ["(in strict at llm.mlp.act, layer 0)"]


def test_a_sweep_is_a_sequence_that_knows_its_axes():
    heat = sweep(keep, layers=[0, (1, 2)], positions=[0, "image", slice(1, 3)])
    assert len(heat) == 6
    assert heat.shape == (2, 3)
    assert (heat.layers, heat.positions) == ((0, (1, 2)), (0, "image", ("slice", 1, 3, None)))
    assert heat[4] == Graph((keep.at(layers=(1, 2), positions="image"),))
    assert list(sweep(keep, positions=[3, 4])) == [Graph((keep.at(positions=place),)) for place in (3, 4)]
    results = [{"keep": torch.tensor([index, 10 * index])} for index in range(6)]
    assert heat.grid(results, "keep").tolist() == [[[0, 0], [1, 10], [2, 20]], [[3, 30], [4, 40], [5, 50]]]
    assert sweep(keep).grid(results[1:2], "keep").tolist() == [1, 10]
    with pytest.raises(InvalidValue, match="5 results for the 6 graphs"):
        heat.grid(results[1:], "keep")
    with pytest.raises(InvalidType, match="layers is a list with an item per graph, not 3"):
        sweep(keep, layers=3)
    with pytest.raises(InvalidValue, match=r"positions=\[\] names nothing"):
        sweep(keep, positions=[])
    with pytest.raises(InvalidType, match="sweep takes an intervention, not Graph"):
        sweep(Graph())


@reads("llm.norm", over="list", unembed=module("llm.unembed"))
def last_logits(hidden: Float[Tensor, "row 1 hidden"], unembed: Any) -> Float[Tensor, "row vocabulary"]:
    return unembed(hidden[:, -1])


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_of_one_position_are_made_of_its_hidden_state(name):
    lens = lens_of(name)
    batch = batch_of(lens)
    found = lens.run(last_logits.at(positions=-1), batch)["last_logits"][0]
    due = lens.run(keep.at("llm.logits", positions=-1), batch)["keep"][0]
    torch.testing.assert_close(found, due[:, -1], rtol=1e-5, atol=1e-5)
