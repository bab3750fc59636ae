"""A long session: a thousand graphs, batches and jobs leave nothing behind but a few digests."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens
from fake_ndif import FakeNdif, served_model
from torch._subclasses.fake_tensor import FakeTensorMode

from interventions import Graph, add_vector, count_active, keep, per_layer, reads, writes, zero_neurons
from mmneuron_lens import Lens
from mmneuron_lens.runtime import checked, shapes
from mmneuron_lens.runtime.checked import AT_MOST
from mmneuron_lens.runtime.typed import typed_function


def of_a_mask() -> tuple[torch.Tensor, Graph]:
    mask = torch.rand(3, 48) > 0.5
    return mask, zero_neurons.bind(neurons=per_layer(mask)) | count_active


def of_masks_by_site() -> tuple[torch.Tensor, Graph]:
    mask = torch.rand(3, 48) > 0.5
    return mask, zero_neurons.at("llm.mlp.act").bind(neurons=per_layer({"llm.mlp.act": mask})) | count_active


def of_a_constant() -> tuple[torch.Tensor, Graph]:
    vector = torch.rand(32)
    return vector, add_vector.bind(vector=vector).at(positions=[-1]) | count_active


def of_a_closure() -> tuple[torch.Tensor, Graph]:
    vector = torch.rand(48)

    @writes("llm.mlp.act")
    def shifted(act):
        return act + vector

    return vector, shifted | count_active


def of_a_default() -> tuple[torch.Tensor, Graph]:
    vector = torch.rand(48)

    @writes("llm.mlp.act")
    def shifted(act, *, by=vector):
        return act + by

    return vector, shifted | count_active


def of_a_function_that_is_called() -> tuple[torch.Tensor, Graph]:
    vector = torch.rand(48)

    def inner(act):
        return act + vector

    @reads("llm.mlp.act", over="list")
    def outer(act):
        return inner(act)

    return vector, Graph((outer,))


MADE = (of_a_mask, of_masks_by_site, of_a_constant, of_a_closure, of_a_default, of_a_function_that_is_called)


@pytest.fixture(scope="module")
def lens() -> Lens:
    return tiny_lens("llava_next")


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Iterator[Lens]:
    folder = tmp_path_factory.mktemp("served")
    made = tiny_lens("llava_next")
    made.module.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    Lens.weightless(folder).nnsight.to_model_key()
    with FakeNdif(served_model(folder), rounds=0) as fake:
        yield Lens(folder, remote=fake.url)


def traced(lens: Lens, graph: Graph, batch: Any) -> None:
    with lens.trace(batch):
        lens["llm.norm"].output.save()


WAYS: dict[str, Callable[[Lens, Graph, Any], Any]] = {
    "check": lambda lens, graph, batch: lens.check(graph, batch),
    "check of a generation": lambda lens, graph, batch: lens.check(graph, batch, max_new_tokens=2),
    "run": lambda lens, graph, batch: lens.run(graph, batch),
    "run with logits": lambda lens, graph, batch: lens.run(graph, [batch, batch], logits=True),
    "generate": lambda lens, graph, batch: lens.generate(graph, batch, max_new_tokens=2),
    "trace": traced,
    "print": lambda lens, graph, batch: (repr(graph), graph._repr_html_(), hash(graph), graph == graph),
}


def left(use: Callable[[Any], Any], *makes: Callable[[], tuple[torch.Tensor, Any]]) -> list[str]:
    """Of which made things a tensor is there when they were used and are gone."""
    held = []
    for make in makes:
        tensor, made = make()
        use(made)
        held.append((make.__name__, weakref.ref(tensor)))
        del tensor, made
    gc.collect()
    return [name for name, one in held if one() is not None]


@pytest.mark.parametrize("way", WAYS)
def test_no_tensor_that_a_graph_binds_outlives_it(way, lens):
    batch = mixed_batch(lens)
    assert left(lambda graph: WAYS[way](lens, graph, batch), *MADE) == []


def test_nor_on_a_server(there):
    batch = mixed_batch(Lens.weightless(there.model.repo))
    assert left(lambda graph: there.run(graph, batch), of_a_mask, of_a_closure) == []


def test_no_batch_and_no_result_is_kept(lens):
    def of_a_batch() -> tuple[Any, Any]:
        batch = mixed_batch(lens)
        return batch.inputs["pixel_values"], batch

    assert left(lambda batch: lens.run(keep | count_active, batch), of_a_batch, of_a_batch) == []
    batch, results = mixed_batch(lens), []
    for _ in range(2):
        out = lens.run(keep | count_active, batch, logits=True)
        results += [weakref.ref(out["keep", "llm.residual"][0]), weakref.ref(out.logits[0])]
        del out
    gc.collect()
    assert not any(one() is not None for one in results)


def test_a_thousand_graphs_leave_at_most_so_many_digests(lens, monkeypatch):
    monkeypatch.setattr(checked, "AT_MOST", 20)
    monkeypatch.setattr(checked, "check_plans", lambda *words: None)
    batch = mixed_batch(lens)
    for _ in range(1000):
        checked.check_once(of_a_mask()[1], [], lens.model, batch)
    assert len(checked._checked[lens.model]) == 20
    assert AT_MOST == 256


def test_a_proof_is_forgotten_with_the_model():
    lens = tiny_lens("llava_next")
    lens.run(count_active, mixed_batch(lens))
    model = weakref.ref(lens.model)
    del lens
    gc.collect()
    assert model() is None


def test_a_function_is_checked_once_where_it_holds_nothing_and_anew_where_it_does():
    assert typed_function(count_active.function) is typed_function(count_active.function)
    for make in (of_a_closure, of_a_default):
        function = make()[1].interventions[0].function
        assert typed_function(function) is not typed_function(function)


def test_shapes_that_were_tried_are_not_remembered_for_ever(lens, monkeypatch):
    monkeypatch.setattr(shapes, "FAKE_CALLS", 200)
    most = 0
    for words in range(1, 31):
        lens.check(count_active, lens.encode(pictures((32, 32)), ["a " * words]))
        most = max(most, len(FakeTensorMode.cache))
    assert 50 < most < 300
