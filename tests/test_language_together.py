"""What graphs can bind, fold and narrow, together: writes, gradients, values, rows, folds, in runs and generations."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures
from hooks import hooked
from placed import Places, spread
from test_values import plus
from torch.utils._pytree import tree_leaves

from interventions import (
    Graph,
    answer_log_probability,
    attribution,
    batch_field,
    gradient,
    integrated_gradients,
    keep,
    largest,
    load_graph,
    logit_difference,
    patch_activations,
    per_layer,
    put_values,
    reads,
    save_graph,
    top_activations,
    value_of,
    writes,
    zero_neurons,
)
from interventions.errors import UnknownName
from mmneuron_lens import Lens

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SIZES = ((40, 56), (64, 30), (33, 31))
QUESTIONS = ("Is it red?", "how many cars are there?", "why")
ANSWERS = ("yes it is", "two", "so")
OF_ANSWER = gradient(answer_log_probability)
BEAMS: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


@cache
def lens_of(name: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Lens:
    module, processor = getattr(newer_models if hasattr(newer_models, name) else tiny_models, name)()
    module = copy.deepcopy(module).to(dtype)
    module.set_attn_implementation(attention)
    return Lens.wrap(module, processor)


def asked(lens: Lens):
    return lens.encode(pictures(*SIZES), QUESTIONS, ANSWERS)


@reads("llm.residual", over="list")
def slope(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return gradient


@reads("llm.residual", over="list")
def beside(value: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"value": value, "other": other}


@reads("llm.residual", over="list")
def apart(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return value - other


@writes("llm.residual")
def taken(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (value + other) / 2


@reads("llm.logits", over="list")
def last_logit(logits: torch.Tensor, token: int) -> torch.Tensor:
    return logits[:, -1, token]


@writes("llm.residual")
def moved(value: torch.Tensor, direction: torch.Tensor, by: float) -> torch.Tensor:
    return value + by * direction


@writes("llm.residual")
def squared(value: torch.Tensor) -> torch.Tensor:
    return value * value / 4


@reads(
    "llm.mlp.act",
    over=largest(4, by="value"),
    weight=batch_field("weight"),
    sample=batch_field("sample"),
    position=batch_field("position"),
)
def best_places(act, weight, sample, position):
    """The candidates of every neuron are all real positions."""
    flat = act.flatten(0, -2)
    value = flat.masked_fill(weight.flatten()[:, None] == 0, -torch.inf)
    names = {"sample": sample, "position": position}
    others = {name: one.flatten()[:, None].expand(flat.shape).T for name, one in names.items()}
    return {"value": value.T, **others}


def zeroing(lens: Lens, site: str = "llm.mlp.act", every: int = 3):
    place = lens.architecture.place(site)
    mask = torch.arange(place.layers * place.sizes["neuron"]).view(place.layers, -1) % every == 0
    return zero_neurons.at(site).bind(neurons=per_layer(mask)), mask


def first(held):
    return held[0] if isinstance(held, tuple) else held


def backwards(monkeypatch) -> list[int]:
    """How many backward passes are made from here on."""
    calls: list[int] = []
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **named: calls.append(1) or plain(*given, **named))
    return calls


def written_again(lens: Lens, batch) -> torch.Tensor:
    """The answers' log-probabilities from the model's own logits, token by token."""
    logits = lens.module(**batch.inputs).logits.float().log_softmax(-1)
    start = batch.prompt_length
    return torch.stack([
        sum(logits[row, start + place - 1, token] for place, token in enumerate(answer))
        for row, answer in enumerate(batch.answers)
    ])  # fmt: skip


def plain_gradients(lens: Lens, site: str, numbers) -> torch.Tensor:
    """Of the sum of these numbers, at every layer of a site that is a module's output, by hooks and autograd."""
    held: dict[str, torch.Tensor] = {}
    paths = [path for _, path in lens.architecture.place(site).paths()]

    def retained(path, value):
        first(value).retain_grad()
        held[path] = first(value)

    with hooked(lens.module, {path: (lambda out, path=path: retained(path, out)) for path in paths}):
        numbers().sum().backward()
    lens.module.zero_grad()
    return torch.stack([torch.zeros_like(held[p]) if held[p].grad is None else held[p].grad for p in paths])


def test_writes_gradients_values_folds_rows_and_positions_in_one_graph_are_plain_hooks():
    lens = lens_of("llava_next")
    batch = asked(lens)
    off, mask = zeroing(lens)
    direction, end = torch.linspace(-1, 1, 32), batch.prompt_length
    graph = (
        off.at(rows=[1])
        | moved.bind(direction=direction, by=0.5).at(layers=[1], rows=[2, 0], positions=[-4, 3])
        | plus.bind(other=value_of("llm.attention.out"), times=2.0).at(layers=[0, 2], rows=[1, 2])
        | slope.bind(gradient=OF_ANSWER).at(rows=[2, 0], positions=[-5, 4], layers=[0, 2])
        | slope.bind(gradient=OF_ANSWER).at("llm.mlp.act", rows=1, positions="image").named("inside")
        | beside.bind(other=value_of("llm.residual")).at("llm.mlp.act", rows=[1], positions=[-3])
        | best_places.at(layers=[0, 2], rows=[1, 2])
    )
    out = lens.run(graph, batch)

    acts: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    added: list[torch.Tensor] = []

    def silenced(act):
        act = act.clone()
        act[1] = act[1].masked_fill(mask[len(acts)], 0)
        act.retain_grad()
        acts.append(act)
        return act

    def doubled(value):
        if len(added) != 2:
            value = value.clone()
            value[[1, 2]] = value[[1, 2]] + 2 * added[-1][[1, 2]]
        return value

    def pushed(held):
        hidden = first(held).clone()
        if len(residuals) == 1:
            for row in (2, 0):
                hidden[row, [end - 4, 3]] += 0.5 * direction
        hidden.retain_grad()
        residuals.append(hidden)
        return (hidden, *held[1:]) if isinstance(held, tuple) else hidden

    hooks: dict[str, Any] = {}
    for layer in range(3):
        path = f"model.language_model.layers.{layer}"
        hooks |= {
            f"{path}.mlp.act_fn": silenced,
            f"{path}.self_attn": lambda held: added.append(held[0].detach()),
            f"{path}.mlp": doubled,
            path: pushed,
        }
    with hooked(lens.module, hooks):
        written_again(lens, batch).sum().backward()
    lens.module.zero_grad()
    expected = torch.stack([residuals[layer].grad[[2, 0]][:, [end - 5, 4]] for layer in (0, 2)])
    torch.testing.assert_close(out["slope"][0], expected, **CLOSE)
    image = batch.fields["llm"]["kind"][1, :, 0]
    torch.testing.assert_close(out["inside"][0], torch.stack([act.grad[1][image] for act in acts]), **CLOSE)
    torch.testing.assert_close(
        out["beside"][0]["value"], torch.stack([act[[1]][:, [end - 3]] for act in acts]), **CLOSE
    )
    there = torch.stack([residual[[1]][:, [end - 3]] for residual in residuals])
    torch.testing.assert_close(out["beside"][0]["other"], there, **CLOSE)

    real = batch.fields["llm"]["weight"] > 0
    for number, layer in enumerate((0, 2)):
        values = torch.cat([acts[layer][row][real[row]] for row in (1, 2)]).detach()
        best = values.T.topk(4, dim=-1).values
        torch.testing.assert_close(out["best_places"]["value"][number], best, **CLOSE)
        found = {name: one[number] for name, one in out["best_places"].items()}
        for sample in (1, 2):
            mine = acts[layer][sample][real[sample]].detach().T
            here = found["sample"] == sample
            seen = mine.gather(1, found["position"].clamp(max=mine.shape[1] - 1))
            torch.testing.assert_close(seen[here], found["value"][here], **CLOSE)
    assert set(out["best_places"]["sample"].flatten().tolist()) == {1, 2}


def test_a_gradient_of_some_rows_is_that_of_their_own_target(monkeypatch):
    """Targets of rows that do not meet share a backward; each looks at its own rows alone."""
    lens = lens_of("llava_next")
    batch = lens.encode(pictures(*SIZES), QUESTIONS)
    rows = lens.module.get_output_embeddings().weight.detach()

    def read(right: int, wrong: int, **narrowed):
        target = logit_difference.bind(right=torch.tensor([right]), wrong=torch.tensor([wrong]))
        return slope.bind(gradient=gradient(target)).at("llm.norm", **narrowed)

    calls = backwards(monkeypatch)
    apart = [(5, 7), (9, 3), (20, 21)]
    graph = Graph(tuple(read(*pair, rows=[row]).named(f"row {row}") for row, pair in enumerate(apart)))
    out = lens.run(graph, batch)
    assert len(calls) == 1
    for row, (right, wrong) in enumerate(apart):
        expected = torch.zeros(1, batch.prompt_length, 32)
        expected[0, -1] = rows[right] - rows[wrong]
        torch.testing.assert_close(out[f"row {row}"][0], expected)
    calls.clear()
    both = lens.run(read(5, 7, rows=[1]).named("one") | read(9, 3, rows=[1]).named("other"), batch)
    assert len(calls) == 2
    torch.testing.assert_close(both["one"][0][0, -1], rows[5] - rows[7])
    torch.testing.assert_close(both["other"][0][0, -1], rows[9] - rows[3])


def test_gradients_are_narrowed_as_values_are():
    lens = lens_of("llava_next")
    batch = asked(lens)
    whole = plain_gradients(lens, "llm.residual", lambda: written_again(lens, batch))
    image = batch.fields["llm"]["kind"][..., 0]
    for narrowed, expected in (
        ({"rows": [1]}, whole[:, [1]]),
        ({"rows": [2, 0], "layers": [0, 2]}, whole[[0, 2]][:, [2, 0]]),
        ({"positions": "image", "layers": 1}, whole[[1]][:, image]),
        ({"positions": "image", "rows": [2, 1]}, torch.cat([whole[:, row, image[row]] for row in (2, 1)], 1)),
        ({"positions": [-4, 7], "rows": 0}, whole[:, [0]][:, :, [batch.prompt_length - 4, 7]]),
        ({"positions": slice(3, 9, 2)}, whole[:, :, 3:9:2]),
    ):
        found = lens.run(slope.bind(gradient=OF_ANSWER).at(**narrowed), batch)["slope"][0]
        torch.testing.assert_close(found, expected, **CLOSE, msg=str(narrowed))
        assert found.abs().max() > 0


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_gradients_in_a_tower_are_those_of_the_rows_images(name):
    """Tiles of an image each, or patches of all images in one row: by how many each image has alone."""
    lens = lens_of(name)
    batch = asked(lens)
    axis = 1 if lens.architecture.facts["patches"] else 2
    read = slope.bind(gradient=OF_ANSWER).at("vision.mlp.act", layers=0)
    whole = lens.run(read, batch)["slope"][0]
    sizes = []
    for image, question, answer in zip(pictures(*SIZES), QUESTIONS, ANSWERS, strict=True):
        sizes.append(lens.run(read, lens.encode([image], [question], [answer]))["slope"][0].shape[axis])
    parts = whole.split(sizes, dim=axis)
    found = lens.run(read.at(rows=[2, 0]), batch)["slope"][0]
    torch.testing.assert_close(found, torch.cat([parts[2], parts[0]], dim=axis), **CLOSE)
    assert found.abs().max() > 0


@reads("llm.mlp.act", over=largest(3, by="effect"), weight=batch_field("weight"), sample=batch_field("sample"))
def largest_effects(act, gradient, weight, sample):
    flat = (act * gradient).flatten(0, -2)
    effect = flat.abs().masked_fill(weight.flatten()[:, None] == 0, -torch.inf)
    return {"effect": effect.T, "sample": sample.flatten()[:, None].expand(flat.shape).T}


def test_gradients_are_folded_over_batches_as_values_are():
    lens = lens_of("llava_next")
    batches = [asked(lens), lens.encode(pictures(SIZES[1]), ["what?"], ["no"])]
    graph = largest_effects.bind(gradient=OF_ANSWER) | attribution.bind(gradient=OF_ANSWER)
    out = lens.run(graph, batches)
    columns, start = [], 0
    for batch, products in zip(batches, out["attribution"], strict=True):
        real = batch.fields["llm"]["weight"] > 0
        columns += [(products[:, row, real[row]], start + row) for row in range(batch.rows)]
        start += batch.rows
    everything = torch.cat([one.abs() for one, _ in columns], dim=1)
    owners = torch.cat([torch.full((one.shape[1],), sample) for one, sample in columns])
    best = everything.transpose(1, 2).sort(dim=-1, descending=True)
    torch.testing.assert_close(out["largest_effects"]["effect"], best.values[..., :3])
    assert torch.equal(out["largest_effects"]["sample"], owners[best.indices[..., :3]])


def test_rewires_and_values_of_a_source_are_in_force_where_gradients_are_taken():
    lens = lens_of("llava_next")
    batch, source = (lens.encode(pictures(*SIZES, seed=seed), QUESTIONS, ANSWERS) for seed in (0, 1))
    graph = (
        patch_activations.at(layers=1, rows=[1])
        | taken.bind(other=value_of(source=True)).at(layers=0, rows=[2, 0], positions=[3, 1])
        | slope.bind(gradient=OF_ANSWER).at("llm.mlp.act")
        | apart.bind(other=value_of(source=True)).at(layers=2, rows=[2])
    )
    out = lens.run(graph, batch, sources=source)
    there = lens.run(keep, source)["keep"][0]
    held: list[torch.Tensor] = []
    last: list[torch.Tensor] = []

    def retained(act):
        act.retain_grad()
        held.append(act)

    def changed(layer, value):
        hidden = first(value).clone()
        if layer == 1:
            hidden[1] = there[1][1]
        elif layer == 0:
            for row in (2, 0):
                hidden[row, [3, 1]] = (hidden[row, [3, 1]] + there[0][row, [3, 1]]) / 2
        else:
            last.append(hidden.detach())
        return (hidden, *value[1:]) if isinstance(value, tuple) else hidden

    path = "model.language_model.layers.{}"
    hooks: dict[str, Any] = {f"{path.format(layer)}.mlp.act_fn": retained for layer in range(3)}
    hooks |= {path.format(layer): lambda value, layer=layer: changed(layer, value) for layer in range(3)}
    with hooked(lens.module, hooks):
        written_again(lens, batch).sum().backward()
    lens.module.zero_grad()
    expected = torch.stack([torch.zeros_like(one) if one.grad is None else one.grad for one in held])
    torch.testing.assert_close(out["slope"][0], expected, **CLOSE)
    # What is before the patch has no part in the answer of its row.
    assert not out["slope"][0][:2, 1].any()
    assert out["slope"][0][2, 1].any()
    torch.testing.assert_close(out["apart"][0][0], (last[0] - there[2])[[2]], **CLOSE)


def slope_by_differences(lens: Lens, batch, site: str, target, **narrowed) -> None:
    """The length of a gradient is the slope of the target along it."""
    found = lens.run(slope.bind(gradient=gradient(target)).at(site, **narrowed), batch)["slope"][0]
    length = float(found.norm())
    assert length > 0, site
    direction = per_layer({site: found / length})

    def along(by: float) -> float:
        graph = moved.bind(direction=direction, by=by).at(site, **narrowed) | target
        return float(lens.run(graph, batch)[target.name][0].sum())

    slopes = [(along(by) - along(-by)) / (2 * by) for by in (1e-4, 1e-3, 1e-2)]
    nearest = min(slopes, key=lambda one: abs(one - length))
    assert abs(nearest - length) <= 1e-2 * length, (site, slopes, length)


BATCHES = {
    "several images a row": (
        "llava_next",
        lambda lens: lens.encode(
            [pictures(*SIZES[:2]), [], pictures(SIZES[2])], ["two of them", "none", "one"], ANSWERS
        ),
    ),
    "text alone": ("llava_next", lambda lens: lens.encode(None, QUESTIONS, ANSWERS)),
    "packed": (
        "llava_next",
        lambda lens: lens.pack([(pictures(SIZES[0]), ["what?", "what is it?"]), (pictures(SIZES[1]), ["who?"])]),
    ),
    "a shared tower": (
        "instructblip",
        lambda lens: lens.pack([(pictures(SIZES[0]), ["what?", "what is it?"]), (pictures(SIZES[1]), ["who?"])]),
    ),
    "several images a row of a tower in one row": (
        "qwen2_5_vl",
        lambda lens: lens.encode([pictures(*SIZES[:2]), pictures(SIZES[2])], ["two of them", "one"], ANSWERS[:2]),
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_gradients_and_values_of_every_kind_of_batch(kind):
    name, make = BATCHES[kind]
    lens = lens_of(name, torch.float64)
    batch = make(lens)
    target = answer_log_probability if batch.answers else last_logit.bind(token=60)
    sites = ["llm.mlp.post", "llm.residual"]
    if kind != "text alone":
        sites += ["vision.mlp.act", "vision.attention.out", "projector.output"]
    for site in [site for site in sites if site in lens.sites]:
        slope_by_differences(lens, batch, site, target)
    pairs = [("llm.attention.z", "llm.mlp.out"), ("llm.residual", "llm.norm")]
    if kind != "text alone":
        pairs += [("vision.mlp.act", "vision.attention.out"), ("vision.attention.q", "vision.residual")]
    for here, there in pairs:
        out = lens.run(beside.at(here).bind(other=value_of(there)) | keep.at(there), batch)
        given, kept = out["beside"][0]["other"], out["keep"][0]
        assert torch.equal(given, kept if given.shape == kept.shape else kept.expand(given.shape)), (here, there)


def test_gradients_with_eager_attention_reach_its_weights():
    lens, other = lens_of("llava_next", attention="eager"), lens_of("llava_next")
    batch = asked(lens)
    read = slope.bind(gradient=OF_ANSWER)
    out = lens.run(read.at("llm.mlp.act").named("act") | read.at("llm.attention.pattern").named("pattern"), batch)
    expected = plain_gradients(lens, "llm.mlp.act", lambda: written_again(lens, batch))
    torch.testing.assert_close(out["act"][0], expected, **CLOSE)
    again = lens_of("llava_next").run(read.at("llm.mlp.act"), asked(other))["slope"][0]
    torch.testing.assert_close(out["act"][0], again, rtol=1e-3, atol=1e-6)

    held: list[torch.Tensor] = []

    def retained(out):
        out[1].retain_grad()
        held.append(out[1])

    paths = [f"model.language_model.layers.{layer}.self_attn" for layer in range(3)]
    with hooked(lens.module, dict.fromkeys(paths, retained)):
        written_again(lens, batch).sum().backward()
    lens.module.zero_grad()
    torch.testing.assert_close(out["pattern"][0], torch.stack([one.grad for one in held]), **CLOSE)
    assert out["pattern"][0].abs().max() > 0


def test_gradients_of_a_model_in_bfloat16_have_its_dtype():
    lens = lens_of("llava_next", torch.bfloat16)
    batch = asked(lens)
    graph = slope.bind(gradient=OF_ANSWER).at("llm.mlp.act") | attribution.bind(gradient=OF_ANSWER).at("llm.mlp.act")
    out = lens.run(graph, batch)
    expected = plain_gradients(lens, "llm.mlp.act", lambda: written_again(lens, batch))
    assert out["slope"][0].dtype == torch.bfloat16
    torch.testing.assert_close(out["slope"][0].float(), expected.float(), rtol=0.05, atol=0.01 * float(expected.max()))


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_on_two_devices_it_is_what_it_is_on_one(name, monkeypatch):
    # It calls functions on fake tensors of its own, one device at a time.
    monkeypatch.setattr("mmneuron_lens.runtime.run.check_once", lambda *_: None)
    # Not the one that other tests share, which nnsight may hold already.
    made, processor = getattr(newer_models if hasattr(newer_models, name) else tiny_models, name).__wrapped__()
    here, there = Lens.wrap(copy.deepcopy(made), processor), Lens.wrap(spread(made), processor)
    batch = asked(here)
    values = (
        plus.bind(other=value_of("llm.attention.out"), times=2.0).at(rows=[1, 2])
        | apart.bind(other=value_of("llm.norm")).at(layers=[0, 1])
        | apart.bind(other=value_of("llm.embedding")).at(rows=[2, 0]).named("earlier")
    )
    gradients = (
        zeroing(here)[0].at(rows=[1])
        | attribution.bind(gradient=OF_ANSWER).at("llm.mlp.act")
        | slope.bind(gradient=OF_ANSWER).at("vision.residual", layers=[0, 1]).named("before")
    )
    for graph in (values, gradients):
        expected = here.run(graph, batch)
        with Places():
            found = there.run(graph, batch)
        assert set(found) == set(expected)
        for key in expected:
            for one, other in zip(tree_leaves(found[key]), tree_leaves(expected[key]), strict=True):
                torch.testing.assert_close(one.as_subclass(torch.Tensor), other, msg=str(key))
    assert {str(one.device) for one in there.module.parameters()} == {"cuda:0", "cuda:1"}


def test_weights_without_gradients_and_an_embedding_that_needs_none():
    lens = lens_of("llava_next")
    batch = asked(lens)
    sites = ["vision.residual", "projector.output", "llm.embedding", "llm.mlp.post", "llm.norm"]
    graph = Graph(tuple(slope.bind(gradient=OF_ANSWER).at(site).named(site) for site in sites))
    expected = lens.run(graph, batch)
    frozen = Lens.wrap(copy.deepcopy(lens.module).requires_grad_(False), lens.processor)
    found = frozen.run(graph, asked(frozen))
    for site in sites:
        torch.testing.assert_close(found[site][0], expected[site][0])
        assert not found[site][0].requires_grad
    assert not any(one.requires_grad or one.grad is not None for one in frozen.module.parameters())


def test_writes_of_several_rows_leave_what_a_backward_needs():
    """A write of rows changes a tensor of ours in place, but not one that an earlier write is differentiated by."""
    lens = lens_of("llava_next")
    batch = asked(lens)
    graph = squared.at(layers=1, rows=[0]) | squared.at(layers=1, rows=[1]).named("again")
    found = lens.run(graph | slope.bind(gradient=OF_ANSWER).at(layers=0), batch)["slope"][0][0]
    held: list[torch.Tensor] = []

    def kept(out):
        first(out).retain_grad()
        held.append(first(out))

    def change(out):
        hidden = first(out)
        hidden = torch.cat([hidden[:2] * hidden[:2] / 4, hidden[2:]])
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    paths = [f"model.language_model.layers.{layer}" for layer in range(2)]
    with hooked(lens.module, {paths[0]: kept, paths[1]: change}):
        written_again(lens, batch).sum().backward()
    lens.module.zero_grad()
    torch.testing.assert_close(found, held[0].grad, rtol=1e-3, atol=1e-5)


def test_a_value_that_the_model_changes_in_place_has_no_gradient():
    module, processor = tiny_models.llava_next()
    lens = Lens.wrap(copy.deepcopy(module), processor)
    batch = asked(lens)

    def double(_module, positional, keywords):
        (positional[0] if positional else keywords["hidden_states"]).mul_(2)

    lens.module.model.language_model.layers[2].register_forward_pre_hook(double, with_kwargs=True)
    read = slope.bind(gradient=OF_ANSWER)
    with pytest.raises(ValueError, match=r"llm\.residual, layer 1: the model changes this value in place"):
        lens.run(read.at(layers=[0, 1]), batch)
    # Where nothing before it is asked about, the change is done to a copy.
    last, before = (lens.run(read.at(layers=layer), batch)["slope"][0] for layer in (2, 1))
    assert last.abs().max() > 0
    assert before.abs().max() > 0


def test_a_value_that_is_given_is_not_what_the_model_makes_of_it_later():
    module, processor = tiny_models.llava_next()
    lens = Lens.wrap(copy.deepcopy(module), processor)
    batch = asked(lens)
    seen: list[torch.Tensor] = []

    def double(_module, positional, keywords):
        hidden = positional[0] if positional else keywords["hidden_states"]
        seen.append(hidden.clone())
        hidden.mul_(2)

    norm = lens.module.model.language_model.layers[0].input_layernorm
    norm.register_forward_pre_hook(double, with_kwargs=True)
    graph = beside.at("llm.residual", layers=0).bind(other=value_of("llm.embedding")).named("later") | beside.at(
        "llm.embedding"
    ).bind(other=value_of("llm.norm")).named("waiting")
    out = lens.run(graph, batch)
    assert torch.equal(out["later"][0]["other"][0], seen[-1])
    assert torch.equal(out["waiting"][0]["value"], seen[-1])


@pytest.mark.parametrize("all_beams", [False, True])
def test_values_of_generated_steps_are_those_of_the_step(all_beams):
    """Of a site that comes later, and at one layer: what the step before left must not be taken for it."""
    lens = lens_of("llava_next")
    batch = lens.encode(pictures(*SIZES), QUESTIONS)
    narrowed = {"steps": "all", "all_beams": all_beams}
    graph = (
        beside.at("llm.attention.q", layers=-1, **narrowed).bind(other=value_of("llm.norm")).named("norm")
        | beside.at("llm.attention.q", layers=-1, **narrowed).bind(other=value_of("llm.residual")).named("layer")
        | keep.at("llm.norm", **narrowed).named("norms")
        | keep.at("llm.residual", layers=-1, **narrowed).named("layers")
    )
    out = lens.generate(graph, batch, **BEAMS)
    for name, whole in (("norm", "norms"), ("layer", "layers")):
        given, kept = (one if isinstance(one, list) else [one] for one in (out[name][0], out[whole][0]))
        assert len(given) == len(kept) == (4 if all_beams else 1)
        for one, expected in zip(given, kept, strict=True):
            assert torch.equal(one["other"].reshape(expected.shape), expected), name


@pytest.mark.parametrize("all_beams", [False, True])
def test_folds_over_steps_and_beams_know_sample_and_position(all_beams):
    """Of every neuron the four largest values of all steps, from what was kept of every step."""
    lens = lens_of("llava_next")
    batches = [lens.encode(pictures(*SIZES), QUESTIONS), lens.encode(pictures(SIZES[1]), ["what?"])]
    narrowed = {"steps": "all", "all_beams": all_beams, "layers": [2]}
    out = lens.generate(best_places.at(**narrowed) | keep.at("llm.mlp.act", **narrowed), batches, **BEAMS)
    entries: list[list[tuple[float, int, int]]] = [[] for _ in range(48)]
    start = 0
    for batch, kept in zip(batches, out["keep"], strict=True):
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        beams = 3 if all_beams else 1
        for step, values in enumerate(kept if isinstance(kept, list) else [kept]):
            values = values[0]
            for row, value in enumerate(values):
                length = lengths[row // beams]
                for column in range(values.shape[1]):
                    # The prompt is padded on the left.
                    place = length - 1 + step if step else column - (batch.prompt_length - length)
                    if place >= 0:
                        for neuron, one in enumerate(value[column].tolist()):
                            entries[neuron].append((-one, start + row // beams, place))
        start += batch.rows
    for neuron, some in enumerate(entries):
        best = sorted(some)[:4]
        found = {name: one[0, neuron].tolist() for name, one in out["best_places"].items()}
        assert found["value"] == [-one for one, _, _ in best]
        assert list(zip(found["sample"], found["position"], strict=True)) == [one[1:] for one in best]


def same(found, expected) -> None:
    assert found.text == expected.text
    assert set(found) == set(expected)
    for key in expected:
        compare(found[key], expected[key])


def compare(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name in expected:
            compare(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    else:
        torch.testing.assert_close(found, expected, **CLOSE)


def test_several_graphs_that_bind_and_fold_are_each_as_alone():
    lens = lens_of("llava_next")
    batches = [asked(lens), lens.encode(pictures(SIZES[1]), ["what?"], ["no"])]
    off, _ = zeroing(lens)
    shared = slope.bind(gradient=OF_ANSWER).at("llm.mlp.act")
    given = beside.bind(other=value_of("llm.attention.out")).at("llm.mlp.out")
    graphs = [
        Graph((shared,)),
        off | shared | given,
        zeroing(lens, "vision.mlp.act")[0] | shared | given | best_places,
        off | plus.bind(other=value_of("llm.attention.out")) | shared.at(rows=0) | best_places.at(rows=0),
        given | answer_log_probability | shared.at(positions="image"),
    ]
    for found, graph in zip(lens.run(graphs, batches), graphs, strict=True):
        same(found, lens.run(graph, batches))


def test_several_generations_with_folds_that_know_samples_are_each_as_alone():
    lens = lens_of("llava_next")
    batches = [lens.encode(pictures(*SIZES), QUESTIONS), lens.encode(pictures(SIZES[1]), ["what?"])]
    off, _ = zeroing(lens)
    fold = best_places.at(steps="all", layers=[0, 2])
    graphs = [Graph((fold,)), off | fold, off.at(rows=0) | top_activations, off | fold.at(rows=[0])]
    for found, graph in zip(lens.generate(graphs, batches, **BEAMS), graphs, strict=True):
        same(found, lens.generate(graph, batches, **BEAMS))


def test_saved_graphs_of_all_that_can_be_bound_are_equal_and_give_the_same(tmp_path):
    lens = lens_of("llava_next")
    batch, source = (lens.encode(pictures(*SIZES, seed=seed), QUESTIONS, ANSWERS) for seed in (0, 1))
    right, wrong = torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10])
    target = gradient(logit_difference.bind(right=right, wrong=wrong))
    graph = (
        zeroing(lens)[0].at(rows=[1])
        | top_activations.folded(largest(3, by="activation")).at(rows=[2, 0])
        | attribution.bind(gradient=target).at(layers=[0, 2], positions="image")
        | attribution.bind(gradient=OF_ANSWER).at(rows=[1]).named("of the answer")
        | integrated_gradients.bind(gradient=target).at("llm.mlp.post", layers=1)
    )
    again = load_graph(save_graph(graph, tmp_path / "graph.json"))
    assert again == graph
    same(lens.run(again, batch, sources=source), lens.run(graph, batch, sources=source))
    other = gradient(logit_difference.bind(right=right, wrong=wrong + 1))
    assert attribution.bind(gradient=other) != attribution.bind(gradient=target)


def test_a_field_of_ones_own_needs_no_steps_in_a_forward_and_is_refused_in_a_generation():
    lens = lens_of("llava_next")
    plain = lens.encode(pictures(*SIZES), QUESTIONS)
    given = torch.randn(3, plain.prompt_length, 32, generator=torch.Generator().manual_seed(0))
    batch = plain.with_fields(given=given)
    write = put_values.at(layers=1)
    out = lens.run(write | keep.at("llm.mlp.out", layers=1), batch)
    assert torch.equal(out["keep"][0][0], given)
    assert lens.check(write, batch).proved
    (alone, other) = lens.run([write | keep.at("llm.norm"), Graph((keep.at("llm.norm"),))], batch)
    assert not torch.equal(alone["keep"][0], other["keep"][0])
    said = r"put_values at llm\.mlp\.out: field 'given' is not known for generated tokens; narrow it with"
    # Although the same graph was proved for a forward.
    for call in (
        lambda: lens.generate(write, batch, max_new_tokens=2),
        lambda: lens.generate([write, Graph()], batch, max_new_tokens=2),
        lambda: lens.check(write, batch, max_new_tokens=2),
    ):
        with pytest.raises(UnknownName, match=said):
            call()
    # Of a trace it is not known before which step it is in.
    lens.run(write, batch)
    with pytest.raises(UnknownName, match=said), lens.trace_generation(batch, max_new_tokens=2):
        lens.apply(write)


def test_a_field_of_ones_own_is_there_when_generated_tokens_are_read():
    lens = lens_of("llava_next")
    plain = lens.encode(pictures(*SIZES), QUESTIONS)
    given = torch.randn(3, plain.prompt_length, 32, generator=torch.Generator().manual_seed(0))
    batch = plain.with_fields(given=given)
    put = put_values.at(layers=1, steps="prompt")
    forced = lens.generate(put | keep.at("llm.residual", steps="generated"), batch, **{**BEAMS, "num_beams": 1})
    live = lens.generate(
        put | keep.at("llm.residual", steps=[1, 2, 3], all_beams=True), batch, **{**BEAMS, "num_beams": 1}
    )
    assert forced.text == live.text
    expected = torch.cat([one for one in live["keep"][0]], dim=-2)
    torch.testing.assert_close(forced["keep"][0][:, :, :3], expected, rtol=1e-4, atol=1e-4)
    # Not those of the model as it is.
    other = lens.generate(keep.at("llm.residual", steps="generated"), batch, **{**BEAMS, "num_beams": 1})
    assert not torch.allclose(forced["keep"][0], other["keep"][0], atol=1e-3)
