"""Gradients in graphs: held to plain autograd with hooks, to central differences, and to completeness."""

from __future__ import annotations

import copy
from functools import cache

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures
from hooks import hooked
from test_values import lens_of

from interventions import (
    Graph,
    answer_log_probability,
    attribution,
    gradient,
    integrated_gradients,
    keep,
    logit_difference,
    per_layer,
    reads,
    summed_attribution,
    value_of,
    writes,
    zero_neurons,
)
from interventions.errors import InvalidType, InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.runtime.shapes import ShapeError

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

QUESTIONS = ("Is it red?", "how many cars are there?")
ANSWERS = ("yes it is", "two")
OF_ANSWER = gradient(answer_log_probability)


@reads("llm.residual", over="list")
def given_gradient(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return gradient


@writes("llm.residual")
def moved(value: torch.Tensor, direction: torch.Tensor, by: float) -> torch.Tensor:
    return value + by * direction


@cache
def double(name: str) -> Lens:
    module, processor = getattr(tiny_models if name == "llava_next" else newer_models, name)()
    return Lens.wrap(copy.deepcopy(module).double(), processor)


def asked(lens: Lens):
    return lens.encode(pictures((40, 56), (64, 30)), QUESTIONS, ANSWERS)


def written_again(lens: Lens, batch) -> torch.Tensor:
    """The answers' log-probabilities from the model's own logits, token by token."""
    logits = lens.module(**batch.inputs).logits.log_softmax(-1)
    start, ids = batch.prompt_length, batch.inputs["input_ids"]
    totals = []
    for row, answer in enumerate(batch.answers):
        assert ids[row, start : start + len(answer)].tolist() == list(answer)
        totals.append(sum(logits[row, start + place - 1, token] for place, token in enumerate(answer)))
    return torch.stack(totals)


def test_an_answers_log_probability_is_the_sum_of_its_tokens():
    lens = lens_of("llava_next")
    batch = asked(lens)
    with torch.no_grad():
        expected = written_again(lens, batch)
    torch.testing.assert_close(lens.run(answer_log_probability, batch)["answer_log_probability"][0], expected)
    # Shorter answers are padded: each is what it is in a batch of its own.
    for row, (picture, question, answer) in enumerate(
        zip(pictures((40, 56), (64, 30)), QUESTIONS, ANSWERS, strict=True)
    ):
        alone = lens.encode([picture], [question], [answer])
        found = lens.run(answer_log_probability, alone)["answer_log_probability"][0]
        torch.testing.assert_close(found[0], expected[row], rtol=1e-4, atol=1e-5)


def test_generated_tokens_are_answers_too():
    lens = lens_of("llava_next")
    images = pictures((40, 56), (64, 30))
    batch = lens.encode(images, QUESTIONS)
    out = lens.generate(Graph(), batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, logits=True)
    found = lens.run(answer_log_probability, lens.encode(images, QUESTIONS, out.tokens))["answer_log_probability"][0]
    each = out.logits[0].log_softmax(-1).gather(-1, torch.stack(out.tokens)[..., None])[..., 0]
    torch.testing.assert_close(found, each.sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["llm.mlp.post", "llm.mlp.act", "vision.mlp.act", "llm.residual"])
def test_it_is_what_plain_autograd_with_hooks_gives(site):
    lens = lens_of("llava_next")
    batch = asked(lens)
    found = lens.run(given_gradient.bind(gradient=OF_ANSWER).at(site), batch)["given_gradient"][0]
    held: dict[str, torch.Tensor] = {}
    paths = [path for _, path in lens.architecture.place(site).paths()]

    def retained(path, value):
        value = value[0] if isinstance(value, tuple) else value
        value.retain_grad()
        held[path] = value

    inputs = lens.architecture.place(site).port["at"] == "input"
    if inputs:
        handles = [
            lens.module.get_submodule(path).register_forward_pre_hook(
                lambda _, args, path=path: retained(path, args[0])
            )
            for path in paths
        ]
        written_again(lens, batch).sum().backward()
        for handle in handles:
            handle.remove()
    else:
        with hooked(lens.module, {path: (lambda out, path=path: retained(path, out)) for path in paths}):
            written_again(lens, batch).sum().backward()
    lens.module.zero_grad()
    expected = torch.stack([torch.zeros_like(held[p]) if held[p].grad is None else held[p].grad for p in paths])
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", newer_models.ARCHITECTURES)
def test_it_is_the_slope_at_every_site_of_every_architecture(name):
    lens = double(name)
    batch = asked(lens)
    drawn = torch.Generator().manual_seed(0)
    seen = 0
    for site in lens.sites:
        place = lens.architecture.place(site)
        if place.fixed or site.endswith(("attention.mask", "attention.pattern")):
            continue
        slope = lens.run(given_gradient.bind(gradient=OF_ANSWER).at(site), batch)["given_gradient"][0]
        steepest = slope if bool(slope.any()) else torch.randn(slope.shape, generator=drawn, dtype=torch.float64)
        direction = per_layer({site: steepest / steepest.norm()})

        def along(by, site=site, direction=direction):
            graph = moved.bind(direction=direction, by=by).at(site) | answer_log_probability
            return float(lens.run(graph, batch)["answer_log_probability"][0].sum())

        # Some models compute norms and rotations in float32, in which small steps drown; large ones bend.
        found = [(along(by) - along(-by)) / (2 * by) for by in (1e-3, 3e-2)]
        nearest = min(found, key=lambda one: abs(one - float(slope.norm())))
        assert abs(nearest - float(slope.norm())) <= 1e-2 * float(slope.norm()), (site, found, float(slope.norm()))
        seen += bool(slope.any())
    assert seen >= 8


def test_writes_are_in_force_and_one_backward_serves_all():
    lens = lens_of("llava_next")
    batch = asked(lens)
    place = lens.architecture.place("llm.mlp.act")
    neurons = torch.arange(place.sizes["neuron"]) % 3 == 0
    zeroing = zero_neurons.bind(neurons=neurons)
    read = given_gradient.bind(gradient=OF_ANSWER).at("llm.mlp.act")
    calls = []
    plain = torch.autograd.grad
    try:
        torch.autograd.grad = lambda *a, **k: calls.append(1) or plain(*a, **k)
        out = lens.run(
            zeroing | read | attribution.bind(gradient=OF_ANSWER) | summed_attribution.bind(gradient=OF_ANSWER), batch
        )
    finally:
        torch.autograd.grad = plain
    assert len(calls) == 1
    paths = [path for _, path in place.paths()]
    held = []

    def silenced(value):
        value = value.masked_fill(neurons, 0)
        value.retain_grad()
        held.append(value)
        return value

    with hooked(lens.module, dict.fromkeys(paths, silenced)):
        written_again(lens, batch).sum().backward()
    lens.module.zero_grad()
    torch.testing.assert_close(out["given_gradient"][0], torch.stack([one.grad for one in held]), rtol=1e-4, atol=1e-7)
    # What the read is given first is the value at its place in the chain; the write came before it.
    product = out["attribution"][0]
    torch.testing.assert_close(out["summed_attribution"], product.double().sum((1, 2)), rtol=1e-4, atol=1e-8)
    assert not torch.equal(out["given_gradient"][0], lens.run(read, batch)["given_gradient"][0]), (
        "the gradient is taken under the write"
    )


def test_two_targets_are_two_gradients():
    lens = lens_of("llava_next")
    batch = lens.encode(pictures((40, 56), (64, 30)), QUESTIONS)
    one, other = (
        gradient(logit_difference.bind(right=torch.tensor(right), wrong=torch.tensor(wrong)))
        for right, wrong in (([5, 6], [7, 8]), ([9, 9], [3, 5]))
    )
    read = given_gradient.at("llm.norm")
    out = lens.run(read.bind(gradient=one).named("one") | read.bind(gradient=other).named("other"), batch)
    rows = lens.module.get_output_embeddings().weight.detach()
    for name, right, wrong in (("one", [5, 6], [7, 8]), ("other", [9, 9], [3, 5])):
        expected = torch.zeros_like(out[name][0])
        expected[:, -1] = rows[right] - rows[wrong]
        torch.testing.assert_close(out[name][0], expected)


def test_integrated_gradients_are_complete():
    lens = double("qwen2_5_vl")
    batch = asked(lens)
    baseline = lens.encode([picture.transpose(0) for picture in pictures((40, 56), (64, 30))], QUESTIONS, ANSWERS)
    change = (
        lens.run(answer_log_probability, batch)["answer_log_probability"][0]
        - lens.run(answer_log_probability, baseline)["answer_log_probability"][0]
    )
    assert change.abs().min() > 0
    read = integrated_gradients.bind(gradient=OF_ANSWER).at("llm.embedding")
    apart = {}
    for rule in ("midpoint", "right"):
        for steps in (4, 32):
            out = lens.run_between(read, batch, baseline, steps=steps, rule=rule)
            apart[rule, steps] = float((out["integrated_gradients"][0].sum((1, 2)) - change).abs().max())
    assert apart["midpoint", 32] < 1e-3 * float(change.abs().max())
    # Points in the middle miss by the square of their distance, points at the end by it.
    assert apart["midpoint", 32] < apart["midpoint", 4] / 20
    assert apart["right", 32] < apart["right", 4] / 4


def test_integrated_gradients_of_neurons_are_the_formula_by_hand():
    lens = double("llava_next")
    batch = asked(lens)
    baseline = lens.encode([picture.transpose(0) for picture in pictures((40, 56), (64, 30))], QUESTIONS, ANSWERS)
    graph = integrated_gradients.bind(gradient=OF_ANSWER) | keep.at("llm.mlp.post") | answer_log_probability
    out = lens.run_between(graph, batch, baseline, steps=3, rule="right")
    ends = [lens.run(keep.at(["llm.embedding", "llm.mlp.post"]), one) for one in (batch, baseline)]
    here, there = (end["keep", "llm.embedding"][0] for end in ends)
    paths = [path for _, path in lens.architecture.place("llm.mlp.post").paths()]
    mean = 0
    for share in (1 / 3, 2 / 3, 1):
        held = []

        def retained(_, args, held=held):
            args[0].retain_grad()
            held.append(args[0])

        first = lens.module.get_submodule(lens.architecture.place("llm.embedding").path)
        point = (there + share * (here - there)).requires_grad_()
        handles = [
            first.register_forward_pre_hook(lambda _, args, point=point: (point, *args[1:]))
            if lens.architecture.place("llm.embedding").port["at"] == "input"
            else first.register_forward_hook(lambda _, args, out, point=point: point)
        ]
        handles += [lens.module.get_submodule(path).register_forward_pre_hook(retained) for path in paths]
        written_again(lens, batch).sum().backward()
        for handle in handles:
            handle.remove()
        mean = mean + torch.stack([one.grad for one in held]) / 3
    lens.module.zero_grad()
    change = ends[0]["keep", "llm.mlp.post"][0] - ends[1]["keep", "llm.mlp.post"][0]
    torch.testing.assert_close(out["integrated_gradients"][0], change * mean)
    # All else is that of the batch itself.
    torch.testing.assert_close(out["keep"][0], ends[0]["keep", "llm.mlp.post"][0])
    torch.testing.assert_close(
        out["answer_log_probability"][0], lens.run(answer_log_probability, batch)["answer_log_probability"][0]
    )


def test_weights_that_need_no_gradient_do_not_stand_in_the_way():
    module, processor = tiny_models.llava_next()
    # A model of its own: others are shared by all tests.
    lens = Lens.wrap(copy.deepcopy(module), processor)
    batch = asked(lens)
    graph = attribution.bind(gradient=OF_ANSWER) | attribution.bind(gradient=OF_ANSWER).at("vision.mlp.act").named("v")
    expected = lens.run(graph, batch)
    lens.module.requires_grad_(False)
    out = lens.run(graph, batch)
    for key, value in expected.items():
        torch.testing.assert_close(out[key][0], value[0])
    assert not out["attribution"][0].requires_grad


@reads("llm.logits", over="list")
def per_token(logits: torch.Tensor) -> torch.Tensor:
    return logits.mean(-1)


REFUSED = {
    "a target of more than one number a row": (
        lambda lens, b: lens.run(attribution.bind(gradient=gradient(per_token)), b),
        ShapeError,
        r"per_token at llm.logits returned \[2, \d+\] for 2 rows; a target returns one number a row",
    ),
    "a write": (
        lambda lens, b: lens.run(moved.bind(direction=OF_ANSWER, by=1.0), b),
        InvalidValue,
        "a gradient is known once the forward is done, so a write cannot be given it",
    ),
    "a target of a write": (lambda lens, b: gradient(moved), InvalidType, "takes a read of one number a row"),
    "a narrowed target": (
        lambda lens, b: gradient(answer_log_probability.at(positions=[-1])),
        InvalidValue,
        "a target is not narrowed",
    ),
    "a target that is not complete": (
        lambda lens, b: lens.run(attribution.bind(gradient=gradient(logit_difference)), b),
        TypeError,
        "logit_difference is not complete",
    ),
    "a generation": (
        lambda lens, b: lens.generate(
            attribution.bind(gradient=OF_ANSWER), lens.encode(None, ["what"]), max_new_tokens=2
        ),
        InvalidValue,
        "gradients are those of a forward",
    ),
    "answers that are not there": (
        lambda lens, b: lens.run(attribution.bind(gradient=OF_ANSWER), lens.encode(None, ["what"])),
        KeyError,
        "no field 'answer'",
    ),
    "flags": (
        lambda lens, b: lens.run(given_gradient.bind(gradient=OF_ANSWER).at("llm.attention.mask"), b),
        InvalidValue,
        "have no gradient",
    ),
    "nothing to average": (lambda lens, b: lens.run_between(keep, b, b), InvalidValue, "this graph binds none"),
    "a line behind the site": (
        lambda lens, b: lens.run_between(integrated_gradients.bind(gradient=OF_ANSWER).at("vision.residual"), b, b),
        InvalidValue,
        "comes before llm.embedding",
    ),
    "no step": (lambda lens, b: lens.run_between(keep, b, b, steps=0), InvalidValue, "at least 1 point"),
    "another rule": (lambda lens, b: lens.run_between(keep, b, b, rule="left"), InvalidValue, "Unknown rule 'left'"),
    "a baseline of another shape": (
        lambda lens, b: lens.run_between(
            integrated_gradients.bind(gradient=OF_ANSWER), b, lens.encode(None, ["what"] * 2, ["a", "b"])
        ),
        InvalidValue,
        "the source batch has shape",
    ),
    "an answer without a token": (lambda lens, b: lens.encode(None, ["a"], [""]), InvalidValue, "has no token"),
    "two answers to one text": (lambda lens, b: lens.encode(None, ["a"], ["b", "c"]), InvalidValue, "2 answers for 1"),
    "an answer that is continued": (
        lambda lens, b: lens.generate(Graph(), b, max_new_tokens=2),
        InvalidValue,
        "answers behind its prompts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused(name):
    call, kind, said = REFUSED[name]
    lens = lens_of("llava_next")
    with pytest.raises(kind, match=said):
        call(lens, asked(lens))


def test_it_shows_itself_and_is_saved(tmp_path):
    from interventions import load_graph, save_graph

    target = logit_difference.bind(right=torch.tensor([5]), wrong=torch.tensor([7]))
    graph = (
        attribution.bind(gradient=gradient(target)).at(layers=[1])
        | integrated_gradients.bind(gradient=OF_ANSWER).at("llm.residual")
        | keep.at("llm.norm")
    )
    assert "gradient=gradient(logit_difference)" in repr(graph)
    assert "baseline=value_of(this site, source)" in repr(graph)
    again = load_graph(save_graph(graph, tmp_path / "graph.json"))
    assert again == graph
    assert again != attribution.bind(gradient=gradient(target.named("other"))) | keep
    assert value_of("llm.norm") != value_of("llm.norm", source=True)


def test_weights_take_no_gradient_meanwhile_and_do_again_afterwards():
    lens = double("llava_next")
    batch = asked(lens)
    weights = dict(lens.module.named_parameters())
    apart = next(iter(weights))
    weights[apart].requires_grad_(False)
    seen: list[tuple[bool, bool]] = []
    tower = lens.module.get_submodule(lens.architecture.place("vision.residual").paths()[-1][1])
    handle = tower.register_forward_hook(
        lambda module, inputs, out: seen.append(
            ((out if isinstance(out, torch.Tensor) else out[0]).requires_grad, torch.is_grad_enabled())
        )
    )
    try:
        lens.run(summed_attribution.bind(gradient=OF_ANSWER), batch)
        assert seen == [(False, True)]
        assert [name for name, one in weights.items() if not one.requires_grad] == [apart]
        assert all(one.grad is None for one in weights.values())

        @reads("llm.mlp.post", over="list", gradient=OF_ANSWER)
        def failing(value, gradient):
            if bool((value == value).all()):
                raise RuntimeError("no")
            return value

        with pytest.raises(Exception, match="no"):
            lens.run(failing, batch)
        assert [name for name, one in weights.items() if not one.requires_grad] == [apart]
        seen.clear()
        lens.run([Graph(), Graph((summed_attribution.bind(gradient=OF_ANSWER),))], batch)
        assert (False, True) in seen
    finally:
        handle.remove()
        weights[apart].requires_grad_(True)
