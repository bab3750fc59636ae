"""Folds: any split of samples into batches and any order of merges gives what all samples at once give."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from dataclasses import replace

import newer_models
import pytest
import torch
from conftest import pictures, tiny_lens
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

from interventions import (
    Graph,
    batch_field,
    count_active,
    keep,
    largest,
    load_graph,
    maximum_activation,
    mean_activation,
    per_layer,
    reads,
    sample_activations,
    save_graph,
    top_activations,
    zero_neurons,
)
from interventions.errors import InvalidType, InvalidValue, MMNeuronError
from mmneuron_lens import Lens
from mmneuron_lens.runtime.compile import compile_graph
from mmneuron_lens.runtime.folding import folding
from mmneuron_lens.runtime.forms import forms_of, misfits
from mmneuron_lens.wire import fold
from mmneuron_lens.wire import pack as packing

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

KEY = ("read", "site")
LAYERS, NEURONS = 2, 3


def chan(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean and sum of squared deviations of two groups as one. Source: Chan, Golub and LeVeque (1983)."""
    total = left["count"] + right["count"]
    delta = right["mean"] - left["mean"]
    share = right["count"].double() / total.clamp(min=1)
    return {
        "count": total,
        "mean": left["mean"] + delta * share,
        "squares": left["squares"] + right["squares"] + delta.square() * left["count"] * share,
    }


@reads("llm.mlp.act", over=chan, weight=batch_field("weight"))
def moments(act: Float[Tensor, "*where neuron"], weight: Int[Tensor, "*where"]) -> dict[str, Tensor]:
    real = (weight > 0).flatten()[:, None]
    values = act.flatten(0, -2).double().masked_fill(~real, 0)
    count = real.sum().expand(act.shape[-1])
    mean = values.sum(0) / count.clamp(min=1)
    return {"count": count, "mean": mean, "squares": ((values - mean) * real).square().sum(0)}


@reads("llm.mlp.act", over="list", weight=batch_field("weight"), sample=batch_field("sample"),
       position=batch_field("position"))  # fmt: skip
def laid_out(act, weight, sample, position):
    return {"act": act, "weight": weight, "sample": sample, "position": position}


# --- the functions, on bare tensors ---

SAMPLES = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.integers(-2, 2), min_size=1, max_size=4)), min_size=1, max_size=10
)
"""By sample its number, of which some are equal, and small values, of which many are."""


def values_of(sample: tuple[int, list[int]], layer: int) -> Tensor:
    """[position, neuron]: other values at every neuron and layer."""
    number, values = sample
    rows = torch.tensor(values, dtype=torch.float64)[:, None] * torch.tensor([1.0, -1.0, 0.0]) + layer
    return rows + (number % 2) * torch.tensor([0.0, 1.0, 0.0])


def partial_of(sample: tuple[int, list[int]], layer: int, over: str):
    values = values_of(sample, layer)
    if over == "sum":
        return values.sum(0)
    if over == "mean":
        return values.sum(0), torch.tensor(len(values))
    if over == "max":
        return values.amax(0)
    if over == "chan":
        mean = values.mean(0)
        return {"count": torch.tensor([len(values)] * 3), "mean": mean, "squares": (values - mean).square().sum(0)}
    places = torch.arange(len(values)).expand(NEURONS, -1)
    return {"sample": torch.full_like(places, sample[0]), "position": places, "value": values.T.float().contiguous()}


OVERS = {
    "sum": "sum",
    "mean": "mean",
    "max": "max",
    "chan": chan,
    "best": largest(3, by="value"),
    "best of each": largest(3, by="value", distinct="sample"),
}
AT_ONCE = {f"{name}, all layers at once": folding(OVERS[name], True) for name in ("best", "best of each")}


def folded(samples, over: str, draw):
    """All samples, one a batch, merged pairwise in any grouping, and at random in any order."""
    at_once = over in AT_ONCE
    how = AT_ONCE[over] if at_once else OVERS[over]
    overs = {KEY: how if at_once else getattr(how, "together", how)}
    alone = getattr(how, "alone", lambda partial: partial)
    order = (
        draw(st.permutations(range(len(samples)))) if "best" in over or over in ("sum", "max") else range(len(samples))
    )
    parts = [
        fold.stack({KEY: {layer: [alone(partial_of(samples[number], layer, over))] for layer in range(LAYERS)}}, overs)
        for number in order
    ]
    while len(parts) > 1:
        at = draw(st.integers(0, len(parts) - 2))
        # A left one is always in the form that is kept, a right one may be what a batch returned.
        joined = fold.join(fold.settled(parts[at][KEY], overs[KEY]), parts[at + 1][KEY], overs[KEY])
        parts[at : at + 2] = [{KEY: joined}]
    return fold.finish({KEY: fold.settled(parts[0][KEY], overs[KEY])}, overs)[KEY]


def brute_force(samples, over: str):
    """From all values at once, by sorting Python's tuples."""
    out = {"sample": [], "position": [], "value": []}
    for layer in range(LAYERS):
        for neuron in range(NEURONS):
            entries = [
                (-float(value), sample[0], place)
                for sample in samples
                for place, value in enumerate(values_of(sample, layer)[:, neuron])
            ]
            ranked = sorted(entries)
            if over.startswith("best of each"):
                ranked = [one for at, one in enumerate(ranked) if one[1] not in {other[1] for other in ranked[:at]}]
            ranked = (ranked + [(torch.inf, -1, -1)] * 3)[:3]
            for name, column in zip(("value", "sample", "position"), zip(*ranked, strict=True), strict=True):
                out[name].append([-one if name == "value" else one for one in column])
    return {name: torch.tensor(rows).view(LAYERS, NEURONS, 3) for name, rows in out.items()}


@given(SAMPLES, st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
@pytest.mark.parametrize("over", ["best", "best of each", *AT_ONCE])
def test_the_largest_are_those_of_all_entries_whatever_the_order_of_merges(over, samples, data):
    found, due = folded(samples, over, data.draw), brute_force(samples, over)
    assert found["value"].tolist() == due["value"].tolist()
    assert torch.equal(found["sample"], due["sample"])
    assert torch.equal(found["position"], due["position"])


@given(SAMPLES, st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
@pytest.mark.parametrize("over", ["sum", "mean", "max", "chan"])
def test_words_and_a_function_of_ones_own_are_those_of_all_values(over, samples, data):
    found = folded(samples, over, data.draw)
    for layer in range(LAYERS):
        everything = torch.cat([values_of(sample, layer) for sample in samples])
        if over == "chan":
            assert found["count"][layer].tolist() == [len(everything)] * 3
            torch.testing.assert_close(found["mean"][layer], everything.mean(0))
            torch.testing.assert_close(found["squares"][layer], everything.var(0, unbiased=False) * len(everything))
        else:
            due = {"sum": everything.sum(0), "mean": everything.mean(0), "max": everything.amax(0)}[over]
            torch.testing.assert_close(found[layer], due)


def test_the_larger_of_two_numbers_is_nan_where_one_is():
    nan = float("nan")
    for left, right, due in ((1.0, 2, 2), (3, 2.0, 3), (nan, 1.0, nan), (1.0, nan, nan)):
        assert str(fold.join(left, right, "max")) == str(due)
        both = torch.tensor(float(left)), torch.tensor(float(right))
        assert str(float(fold.join(*both, "max"))) == str(float(due))


def test_nan_and_minus_infinity_are_no_entries():
    nan, inf = float("nan"), float("inf")
    one = largest(3, by="value")({"value": torch.tensor([nan, 1.0, -inf])}, {"value": torch.tensor([nan, inf])})
    assert one["value"].tolist() == [inf, 1.0, -inf]
    whole = largest(2, by="count")({"count": torch.tensor([3])}, {"count": torch.tensor([], dtype=torch.int64)})
    assert whole["count"].tolist() == [3, torch.iinfo(torch.int64).min]


def test_the_shortcut_changes_nothing_and_the_argument_stays_as_it_was():
    generator = torch.Generator().manual_seed(0)
    how = largest(4, by="value", distinct="sample")
    total = None
    plain: list[dict[str, Tensor]] = []
    for _ in range(30):
        values = torch.randint(0, 50, (100, 2), generator=generator).float()
        samples = torch.randint(0, 12, (100, 2), generator=generator)
        plain.append({"value": values, "sample": samples})
        one = how.alone(plain[-1])
        before = None if total is None else {name: part.clone() for name, part in total.items()}
        after = one if total is None else how.together(total, one)
        assert before is None or all(torch.equal(before[name], total[name]) for name in before)
        total = after
    whole = how.alone({name: torch.cat([one[name] for one in plain], -1) for name in ("value", "sample")})
    assert all(torch.equal(total[name], whole[name]) for name in whole)


def test_layers_that_cannot_be_stacked_are_folded_one_by_one():
    how = folding(largest(2, by="value", distinct="sample"), True)

    def batch(layers: dict[int, list[list[float]]], sample: int):
        made = {layer: torch.tensor(values) for layer, values in layers.items()}
        return {layer: [{"value": one, "sample": torch.full_like(one, sample).long()}] for layer, one in made.items()}

    batches = [
        ({0: [[1.0], [2.0]], 1: [[5.0]]}, 0),
        ({0: [[3.0], [0.0]], 1: [[4.0]]}, 1),
        ({1: [[6.0]], 2: [[7.0]]}, 2),
    ]
    total = {}
    for layers, sample in batches:
        total = fold.merge(total, fold.stack({KEY: batch(layers, sample)}, {KEY: how}), {KEY: how})
    found = fold.finish(total, {KEY: how})[KEY]
    assert [one.tolist() for one in found["value"]] == [[[3, 1], [2, 0]], [[6, 5]], [[7, -torch.inf]]]
    assert [one.tolist() for one in found["sample"]] == [[[1, 0], [0, 1]], [[2, 0]], [[2, -1]]]


def test_a_read_hands_on_no_more_candidates_than_are_kept():
    how = largest(2, by="value")
    many = {"value": torch.tensor([[1.0, 4.0, 3.0]])}
    assert how.fewer(many)["value"].tolist() == [[4, 3]]
    few = {"value": torch.tensor([[1.0, 4.0]])}
    assert how.fewer(few) is few


def test_equal_folds_are_equal_and_show_their_settings():
    assert largest(3, by="a") == largest(3, by="a") != largest(3, by="a", distinct="b")
    assert repr(largest(3, by="a", distinct="b")) == "largest(k=3, by='a', distinct='b')"
    assert "over=largest(k=20, by='activation', distinct='sample')" in repr(top_activations)
    assert "over=chan" in repr(moments)
    more = top_activations.folded(largest(50, by="activation"))
    assert more != top_activations == more.folded(largest(20, by="activation", distinct="sample"))
    assert hash(Graph((more,))) != hash(Graph((top_activations,)))


def three(left, middle, right):
    return left


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (lambda left, right: left, "over is a lambda, which has no name to show or save; write it with def"),
        (functools.partial(three, 1), "over is a function of two partial results, not partial: write one with def"),
        (three, "three takes left, middle, right; a fold takes two partial results: def three(left, right)"),
        (max, "not builtin_function_or_method"),
        (count_active, "not Intervention"),
        ("median", "Unknown over 'median'. Did you mean 'mean'? Choices: sum, mean, list, max"),
        (7, "Unknown over 7"),
    ],
)
def test_what_is_no_fold_is_refused_in_a_line(over, says):
    with pytest.raises(MMNeuronError, match=re.escape(says)):
        reads("llm.mlp.act", over=over)
    with pytest.raises(MMNeuronError, match=re.escape(says)):
        count_active.folded(over)


def test_a_write_is_not_folded():
    with pytest.raises(InvalidValue, match="it writes; fold a read"):
        zero_neurons.folded("sum")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": 0, "by": "a"}, "k is 0; keep at least 1"),
        ({"k": True, "by": "a"}, "k is a whole number, not True"),
        ({"k": 1, "by": 2}, "by is the name of a key, not 2"),
        ({"k": 1, "by": "a", "distinct": "a"}, "distinct='a' is what ranks"),
    ],
)
def test_settings_of_largest_are_checked(arguments, says):
    with pytest.raises(MMNeuronError, match=re.escape(says)):
        largest(**arguments)


# --- in a run ---


@pytest.fixture(scope="module")
def tiny() -> Lens:
    return tiny_lens("llava_next")


PICTURES = pictures((40, 56), (64, 30), (32, 32), (40, 40), (50, 33), seed=3)
PROMPTS = ["Is it red?", "how many cars are there?", "why", "what is this thing?", "x"]


def batches_of(lens: Lens, *sizes: int):
    found, start = [], 0
    for size in sizes:
        found.append(lens.encode(PICTURES[start : start + size], PROMPTS[start : start + size]))
        start += size
    return found


def by_hand(lens: Lens, batches, k: int):
    """Top activations of the language model from a list of values, by row and column: [layer][neuron] of tuples."""
    out = lens.run(keep.at("llm.mlp.act"), batches)["keep"]
    found: list[list[list[tuple[float, int, int]]]] = [[[] for _ in range(48)] for _ in range(3)]
    start = 0
    for batch, acts in zip(batches, out, strict=True):
        for row in range(batch.rows):
            real = int(batch.inputs["attention_mask"][row].sum())
            for layer in range(3):
                best, place = acts[layer, row, acts.shape[2] - real :].max(0)
                for neuron in range(48):
                    found[layer][neuron].append((float(best[neuron]), start + row, int(place[neuron])))
        start += batch.rows
    return [[sorted(some, key=lambda one: (-one[0], *one[1:]))[:k] for some in layer] for layer in found]


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 1, 1, 1, 1)])
def test_top_activations_are_those_of_every_row_and_column(tiny, sizes):
    batches = batches_of(tiny, *sizes)
    read = top_activations.folded(largest(3, by="activation", distinct="sample"))
    out = tiny.run(read, batches)["top_activations"]
    due = by_hand(tiny, batches, 3)
    found = [
        [
            list(
                zip(*(out[name][layer, neuron].tolist() for name in ("activation", "sample", "position")), strict=True)
            )
            for neuron in range(48)
        ]
        for layer in range(3)
    ]
    assert found == due
    assert out["sample"].dtype == out["position"].dtype == torch.int64


def test_maximum_and_moments_leave_padding_out(tiny):
    batches = batches_of(tiny, 3, 2)
    out = tiny.run(maximum_activation | moments | keep.at("llm.mlp.act"), batches)
    real = [batch.inputs["attention_mask"].bool() for batch in batches]
    acts = torch.cat([one[:, some] for one, some in zip(out["keep"], real, strict=True)], 1)
    assert torch.equal(out["maximum_activation"], acts.amax(1))
    torch.testing.assert_close(out["moments"]["mean"], acts.double().mean(1))
    torch.testing.assert_close(
        out["moments"]["squares"] / out["moments"]["count"], acts.double().var(1, unbiased=False)
    )


def test_padding_must_be_told_apart(tiny):
    batch = batches_of(tiny, 3)[0]
    with pytest.raises(InvalidValue, match=r"takes the largest over positions but binds no weight.*leave out where"):
        tiny.check(reads("llm.mlp.act", over="max")(lambda act: act.amax((0, 1))).named("largest"), batch)
    with pytest.raises(InvalidValue, match="folds over positions but binds no weight"):
        tiny.check(reads("llm.mlp.act", over=chan)(lambda act: {"mean": act.mean((0, 1))}).named("one"), batch)

    @reads("llm.mlp.act", over=largest(2, by="last", distinct="sample"), sample=batch_field("sample"))
    def last(act, sample):
        return {"last": act[:, -1].T, "sample": sample[:, -1].expand(act.shape[-1], -1)}

    assert tiny.check(last, batch).proved == ("last at llm.mlp.act",)


def grown(left, right):
    return torch.cat([left, right])


def lost(left, right):
    return {"count": left["count"] + right["count"]}


def turned(left, right):
    return {name: (left[name] + right[name]) / 2 for name in left}


def test_a_fold_must_return_what_it_is_given(tiny):
    batch = batches_of(tiny, 1)[0]

    def read(over, returned):
        return reads("llm.mlp.act", over=over, weight=batch_field("weight"))(returned).named("one")

    counted = {"count": torch.ones(2, dtype=torch.int64), "mean": torch.ones(2)}
    for over, says in (
        (lost, "its fold lost made of two partial results {count: int64 of 1 axes}, and one is {count: int64 of 1"),
        (turned, "{count: float32 of 1 axes, mean: float32 of 1 axes}"),
        (grown, "TypeError"),
    ):
        with pytest.raises(MMNeuronError, match=re.escape(says)):
            tiny.check(read(over, lambda act, weight: counted), batch)
    with pytest.raises(MMNeuronError, match="returns a tensor, or a dict or tuple of tensors, not list"):
        tiny.check(read(grown, lambda act, weight: [act]), batch)
    # Sizes may grow, and the earlier result comes first.
    batches = batches_of(tiny, 1, 1)
    out = tiny.run(read(grown, lambda act, weight: act.flatten(0, 1)) | keep.at("llm.mlp.act"), batches)
    assert torch.equal(out["one"], torch.cat([one[:, 0] for one in out["keep"]], 1))


def test_a_read_that_largest_cannot_rank_is_refused_in_a_line(tiny):
    batch = batches_of(tiny, 1)[0]
    for returned, says in (
        ({"a": torch.ones(2)}, "largest ranks by 'value', distinct None, and the read returns ['a']"),
        ({"value": torch.ones(2), "a": torch.ones(3)}, "largest folds tensors of one shape"),
        (torch.ones(2), "largest folds dicts of tensors"),
    ):
        made = reads("llm.mlp.act", over=largest(2, by="value"), weight=batch_field("weight"))
        with pytest.raises(MMNeuronError, match=re.escape(says)):
            tiny.check(made(lambda act, weight, returned=returned: returned).named("one"), batch)


def test_results_of_separate_runs_are_those_of_one(tiny):
    graph = top_activations | maximum_activation | moments | mean_activation | count_active | laid_out
    sizes = (2, 1, 2)
    batches = batches_of(tiny, *sizes)
    numbered, start = [], 0
    for batch, size in zip(batches, sizes, strict=True):
        numbered.append(batch.with_samples(range(start, start + size)))
        start += size
    whole = tiny.run(graph, batches, logits=True)
    parts = [tiny.run(graph, one, logits=True) for one in numbered]
    for merged in (
        parts[0].merged(*parts[1:]),
        parts[0].merged(parts[1].merged(parts[2])),
        parts[0].merged(*parts[1:]),
    ):
        for key in whole:
            torch.testing.assert_close(merged[key], whole[key], rtol=1e-12, atol=0)
        assert len(merged.logits) == 3
    with pytest.raises(InvalidValue, match=r"count_active at llm.mlp.act is in the first result alone"):
        tiny.run(count_active, batches[0]).merged(tiny.run(keep, batches[0]))
    with pytest.raises(InvalidValue, match="folded in two ways"):
        tiny.run(count_active, batches[0]).merged(tiny.run(count_active.folded("max"), batches[0]))
    with pytest.raises(InvalidValue, match="folded in two ways"):
        tiny.run(top_activations, batches[0]).merged(
            tiny.run(top_activations.folded(largest(3, by="activation")), batches[0])
        )


def test_results_of_other_layers_stand_beside_one_another(tiny):
    first, second = (one.with_samples([at]) for at, one in enumerate(batches_of(tiny, 1, 1)))
    whole = tiny.run(top_activations, [first, second])["top_activations"]
    parts = [tiny.run(top_activations.at(layers=layers), first) for layers in ([0, 1], [1, 2])]
    merged = parts[0].merged(tiny.run(top_activations.at(layers=[1, 2]), second), tiny.run(
        top_activations.at(layers=0), second))["top_activations"]  # fmt: skip
    third = parts[1].merged(tiny.run(top_activations.at(layers=2), second))["top_activations"]
    for name, value in whole.items():
        assert torch.equal(merged[name][:2], value[:2])
        assert torch.equal(third[name][1], value[2])


def test_packed_in_parts_or_not_is_what_one_by_one_is(tiny, monkeypatch):
    monkeypatch.setattr(packing, "LONG", 8)
    monkeypatch.setattr(packing, "PART", 30)
    rows = [(PICTURES[:1], PROMPTS[:3]), (PICTURES[1:2], PROMPTS[3:])]
    graph = top_activations.at("*.act") | maximum_activation.at("*.act")
    cut = tiny.pack(rows, cut=True)
    assert cut.sharing["cuts"]
    alone = [tiny.encode([some], [prompt]) for some, prompts in rows for prompt in prompts]
    numbers = [number for number, (_, prompts) in enumerate(rows) for _ in prompts]
    due = tiny.run(graph, [batch.with_samples([number]) for batch, number in zip(alone, numbers, strict=True)])
    for batch in (tiny.pack(rows), cut):
        out = tiny.run(graph, batch)
        for key in due:
            name = key[0]
            found, one_by_one = (
                one[key]["activation"] if name == "top_activations" else one[key] for one in (out, due)
            )
            torch.testing.assert_close(found, one_by_one, rtol=1e-4, atol=1e-4)
            if name == "top_activations":
                same = (out[key]["sample"] == due[key]["sample"]).float().mean()
                assert same > 0.98, key


# --- sample and position ---

MORE = {"llava_next": tiny_lens, "instructblip": tiny_lens, "blip2": tiny_lens, "llava": tiny_lens}
NAMES = (*MORE, *newer_models.ARCHITECTURES)


@functools.cache
def lens_of(name: str) -> Lens:
    return MORE[name](name) if name in MORE else Lens.wrap(*getattr(newer_models, name)())


def values_at(out, site: str, part: int, sample: int) -> Tensor:
    """[layer, position, neuron] of one sample, by `position`, which counts from 0 without a gap."""
    one = out["laid_out", site]
    one = one[part]
    act, where = one["act"], {name: one[name] for name in ("weight", "sample", "position")}
    if where["sample"].ndim == 3:
        where = {name: field[0] for name, field in where.items()}
    else:
        act = act[None]
    act = act.flatten(1, 2)
    mine = (where["sample"] == sample).flatten() & (where["weight"] > 0).flatten()
    places = where["position"].flatten()[mine]
    assert sorted(places.tolist()) == list(range(len(places))), (site, sample, places)
    return act[:, mine][:, places.argsort()]


@pytest.mark.parametrize("name", NAMES)
def test_samples_and_positions_are_those_of_each_sample_alone(name):
    lens = lens_of(name)
    sites = [site for site in lens.sites if site.endswith(".act")]
    batches = batches_of(lens, 3, 2)
    out = lens.run(laid_out.at(sites), batches)
    alone = lens.run(laid_out.at(sites), [lens.encode([PICTURES[at]], [PROMPTS[at]]) for at in range(5)])
    for site in sites:
        for at in range(5):
            due = alone["laid_out", site][at]
            layered = due["sample"].ndim == 3
            act = due["act"].flatten(1, 2) if layered else due["act"].flatten(0, 1)[None]
            assert (due["sample"] == at).all()
            real = (due["weight"][0] if layered else due["weight"]).flatten() > 0
            found = values_at(out, site, int(at > 2), at)
            torch.testing.assert_close(found, act[:, real], rtol=1e-3, atol=1e-3)


def test_two_images_of_a_row_are_one_sample(tiny):
    several = [PICTURES[:2], PICTURES[2:3], []]
    batch = tiny.encode(several, PROMPTS[:3])
    out = tiny.run(laid_out.at("vision.mlp.act"), batch)
    alone = tiny.run(laid_out.at("vision.mlp.act"), tiny.encode(several[:1], PROMPTS[:1]))
    found = values_at(out, "vision.mlp.act", 0, 0)
    torch.testing.assert_close(found, alone["laid_out"][0]["act"].flatten(1, 2), rtol=1e-4, atol=1e-4)
    assert sorted(set(out["laid_out"][0]["sample"].flatten().tolist())) == [0, 1]


def test_a_packed_row_is_one_sample_and_its_first_question_goes_on_from_the_prefix(tiny):
    rows = [(PICTURES[:1], PROMPTS[:2]), (PICTURES[1:2], PROMPTS[2:4])]
    out = tiny.run(laid_out.at("*.act"), tiny.pack(rows))
    for row, (some, prompts) in enumerate(rows):
        alone = tiny.run(keep.at("*.act"), tiny.encode([some], prompts[:1]))
        for site in ("vision.mlp.act", "llm.mlp.act"):
            due = alone["keep", site][0].flatten(1, 2)
            found = values_at(out, site, 0, row)[:, : due.shape[1]]
            torch.testing.assert_close(found, due, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["instructblip", "blip2", "paligemma"])
def test_rows_that_share_a_vision_tower_are_of_the_sample_of_their_image(name):
    lens = lens_of(name)
    sites = [site for site in lens.sites if site.endswith(".act")]
    rows = [(PICTURES[:1], PROMPTS[:2]), (PICTURES[1:2], PROMPTS[2:3])]
    out = lens.run(laid_out.at(sites), [lens.pack(rows), lens.encode(PICTURES[3:4], PROMPTS[3:4])])
    for site in sites:
        one, behind = out["laid_out", site]
        sample, position = one["sample"], one["position"]
        sample, position = (sample[0], position[0]) if sample.ndim == 3 else (sample, position)
        expected = [0, 1] if site.startswith("vision") else [0, 0, 1]
        assert sample[:, 0].tolist() == expected, site
        assert (sample == sample[:, :1]).all()
        assert (behind["sample"] == 2).all()
        if site != "llm.mlp.act" and site != "qformer.text.act":
            assert position.tolist() == [list(range(position.shape[1]))] * len(expected)


GENERATION = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@reads("llm.mlp.act", over="list", sample=batch_field("sample"), position=batch_field("position"))
def places(act, sample, position):
    return torch.stack([sample, position], -1)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_generated_tokens_go_on_from_the_prompts(name):
    lens = lens_of(name)
    batches = batches_of(lens, 2, 1)
    forced = lens.generate(places.at(steps="generated", layers=0), batches, **GENERATION)["places"]
    live = lens.generate(places.at(steps="all", layers=0, all_beams=True).named("live"), batches, **GENERATION)["live"]
    start = 0
    for batch, one, steps in zip(batches, forced, live, strict=True):
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        for row, length in enumerate(lengths):
            assert one[0, row, :, 0].tolist() == [start + row] * 4
            assert one[0, row, :, 1].tolist() == list(range(length, length + 4))
            for number, step in enumerate(steps[0] if len(steps) == 1 else steps):
                step = step if step.ndim == 3 else step[0]
                for beam in range(3):
                    assert step[3 * row + beam, -1].tolist() == [start + row, length - 1 + number]
        start += batch.rows


def test_numbers_of_ones_own(tiny):
    first, second = batches_of(tiny, 2, 3)
    out = tiny.run(laid_out, [first.with_samples([17, 18]), second.with_samples([4, 4, 2**40])])
    assert out["laid_out"][0]["sample"][0, :, 0].tolist() == [17, 18]
    assert out["laid_out"][1]["sample"][0, :, 0].tolist() == [4, 4, 2**40]
    with pytest.raises(InvalidValue, match="1 numbers for 2 samples"):
        first.with_samples([1])
    with pytest.raises(InvalidValue, match="is -1; numbers are from 0"):
        first.with_samples([-1, 2])
    with pytest.raises(InvalidType, match=r"a whole number, not 1\.5"):
        first.with_samples([1.5, 2])
    with pytest.raises(InvalidType, match="a list of whole numbers, not 3"):
        first.with_samples(3)
    with pytest.raises(InvalidValue, match="one number could mean two samples"):
        tiny.run(laid_out, [first.with_samples([17, 18]), second])
    # Nobody asks.
    tiny.run(count_active, [first.with_samples([17, 18]), second])
    for name in ("sample", "position", "weight", "kind"):
        with pytest.raises(InvalidValue, match="is the batch's own"):
            first.with_fields(**{name: torch.zeros(first.inputs["input_ids"].shape)})


def test_fields_are_made_where_something_asks_for_them(tiny, monkeypatch):
    from mmneuron_lens.wire import trace

    def refuse(*arguments):
        raise AssertionError("made")

    monkeypatch.setattr(trace, "numbered", refuse)
    tiny.run(count_active | mean_activation, batches_of(tiny, 1))
    with pytest.raises(AssertionError, match="made"):
        tiny.run(top_activations, batches_of(tiny, 1))


# --- saved, sent and held to its form ---


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "folding_of_ones_own.py").write_text(
        "from interventions import batch_field, reads\n\n\n"
        "def first(left, right):\n    return left\n\n\n"
        "def unused(left, right):\n    return left\n\n\n"
        "@reads('llm.mlp.act', over=first, weight=batch_field('weight'))\n"
        "def kept(act, weight):\n    return act.sum()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("folding_of_ones_own")
    sys.modules.pop("folding_of_ones_own")


def test_a_saved_graph_gives_the_same_fold_back(own_module, tmp_path):
    packages = ("interventions", "folding_of_ones_own")
    for read in (
        top_activations,
        top_activations.folded(largest(7, by="activation")),
        maximum_activation,
        count_active.folded("list"),
        own_module.kept,
        count_active.folded(own_module.first),
        own_module.kept.folded(largest(2, by="a", distinct="b")),
    ):
        path = save_graph(Graph((read,)), tmp_path / "graph.json")
        assert load_graph(path, packages) == Graph((read,))
    path = save_graph(Graph((count_active.folded(own_module.first),)), tmp_path / "graph.json")
    with pytest.raises(InvalidValue, match="over: folding_of_ones_own:first is outside the packages"):
        load_graph(path)


def test_a_fold_that_could_not_be_found_again_is_not_saved(own_module, tmp_path):
    def inner(left, right):
        return left

    for over in (own_module.unused, inner):
        with pytest.raises(InvalidValue, match=r"cannot be saved: its fold (unused|inner).*Move the function to a mod"):
            save_graph(Graph((count_active.folded(over),)), tmp_path / "graph.json")


def test_what_a_server_sends_is_held_to_its_form(tiny):
    batch = batches_of(tiny, 3)[0]
    made = reads("llm.mlp.act", over=grown, weight=batch_field("weight"))(lambda act, weight: act.flatten(0, 1)).named(
        "g"
    )
    graph = Graph((top_activations,)) | moments | made
    plans = compile_graph(graph, tiny.architecture)
    forms = forms_of(plans, batch, tiny.architecture, tiny.module, tiny.dtype)
    top, mine, rows = (forms[name, "llm.mlp.act"] for name in ("top_activations", "moments", "g"))
    entry = {name: torch.zeros(3, 48, 20, dtype=torch.int64) for name in ("sample", "position")}
    good = {"activation": torch.zeros(3, 48, 20), **entry}
    assert misfits({(0, 1, 2): good}, top) == ""
    short = {**good, "sample": torch.zeros(3, 48, 19)}
    assert "shape [3, 48, 19], not [3, 48, 20]" in misfits({(0, 1, 2): short}, top)
    assert "not a dict of (0, 1, 2)" in misfits({(0, 1): good}, top)
    one = {"count": torch.zeros(48, dtype=torch.int64), "mean": torch.zeros(48), "squares": torch.zeros(48)}
    assert misfits(dict.fromkeys(range(3), one), mine) == ""
    assert "not int64" in misfits({layer: {**one, "count": torch.zeros(48)} for layer in range(3)}, mine)
    assert misfits(dict.fromkeys(range(3), torch.zeros(999, 48)), rows) == ""
    assert "not [any, 48]" in misfits(dict.fromkeys(range(3), torch.zeros(999, 47)), rows)


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_a_job_folds_and_numbers_as_a_run_here_does(name):
    lens = tiny_lens(name)
    graph = top_activations.at("*.act") | maximum_activation | moments
    batches = [lens.pack([(PICTURES[:1], PROMPTS[:2])]), *batches_of(lens, 2)]
    for some in (batches, [one.with_samples(range(9, 9 + one.sample_count)) for one in batches]):
        here, there = lens.run(graph, some), lens.run(graph, some, remote="local")
        for key in here:
            torch.testing.assert_close(there[key], here[key], rtol=0, atol=0)


def test_memory_does_not_grow_with_batches(tiny):
    (batch,) = batches_of(tiny, 1)
    graph = Graph((top_activations,)) | moments | maximum_activation
    total = tiny.run(graph, [batch] * 3)
    assert {key: [tuple(part.shape) for part in parts_of(value)] for key, value in total.items()} == {
        key: [tuple(part.shape) for part in parts_of(value)] for key, value in tiny.run(graph, batch).items()
    }


def parts_of(value) -> list[Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]


def test_a_fold_defined_again_is_checked_again(tiny):
    batch = batches_of(tiny, 1)[0]
    tiny.run(moments, batch)
    with pytest.raises(MMNeuronError, match="its fold lost"):
        tiny.run(replace(moments, over=lost), batch)


@pytest.mark.parametrize("name", ["llava_next", "instructblip", "qwen2_vl", "internvl", "paligemma"])
def test_packed_prompts_are_samples_of_their_own(name):
    """Numbers one a prompt: a position is that of the prompt alone; what a row shares is of its first prompt."""
    lens, numbers = lens_of(name), [5, 6, 7, 8, 9]
    rows = [(PICTURES[:1], PROMPTS[:2]), (PICTURES[1:2], PROMPTS[2:3]), (PICTURES[2:3], PROMPTS[3:5])]
    batch = lens.pack(rows).with_samples(numbers)
    pictures = [picture for some, texts in rows for _ in texts for picture in some]
    sites = [site for site in lens.sites if site.endswith(".act") or (name, site) == ("paligemma", "projector.output")]
    graph = Graph()
    for site in sites:
        layers = lens.architecture.place(site).layers
        table = torch.tensor([[3] * 5, numbers])[:, None].expand(2, layers or 1, 5)
        neurons, samples = (per_layer(one if layers else one[0]) for one in table)
        graph |= sample_activations.at(site).bind(neurons=neurons, samples=samples, width=200)
    together = lens.run(graph, batch)
    for place, (picture, prompt, number) in enumerate(zip(pictures, PROMPTS, numbers, strict=True)):
        alone = lens.run(graph, lens.encode([picture], [prompt]).with_samples([number]))
        for site in sites:
            found, due = (out["sample_activations", site][0][..., place, :] for out in (together, alone))
            there = ~found.isnan()
            torch.testing.assert_close(found[there], due[there], rtol=1e-4, atol=1e-5)
            own = site.startswith(("llm", "qformer")) or (name == "paligemma" and site.startswith("projector"))
            assert bool(there.any()) == (own or place not in (1, 4)), site
            if place not in (1, 4) or (own and name in ("paligemma", "instructblip")):
                assert torch.equal(there, ~due.isnan()), site
