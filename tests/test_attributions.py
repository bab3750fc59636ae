"""Attributions: held to plain autograd with hooks, summed by bucket; kept, so that what was stopped goes on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from hooks import hooked
from PIL import Image
from test_values import lens_of

import mmneuron_lens as mm
from interventions import answer_log_probability, gradient, integrated_gradients
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.batching.left_out import NoneLeft, SampleRefused
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.attribute import gradient_sums
from mmneuron_lens.runs.attributions import attributions_stage
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.shipping import bare

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.fixture(scope="module", params=["llava-next", "instructblip"])
def lens(request) -> Lens:
    torch.set_num_threads(1)
    return Lens(f"embedded/{request.param}")


@pytest.fixture(scope="module")
def llava() -> Lens:
    torch.set_num_threads(1)
    return Lens("embedded/llava-next")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Three images, two questions each, of several answers."""
    return list(mm.load_corpus("drawn", images=3, questions_per_image=2).only("medical"))


def asked_alone(lens: Lens, sample: Sample, picture: Any = None) -> Any:
    # The answer as it stands behind the prompt, tokenised with it: " yes", not "yes".
    prompt = prompt_of(lens, sample, "evaluation")
    return lens.encode([[picture] if picture else list(sample.images)], [prompt], [f" {sample.answers[0]}"])


def by_hooks(lens: Lens, sample: Sample, alpha: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By site: activation times gradient, and |gradient|^alpha |activation|, of one question by itself."""
    batch = asked_alone(lens, sample)
    paths = {site: [path for _, path in lens.architecture.place(site).paths()] for site in lens.sites}
    paths = {site: some for site, some in paths.items() if site.endswith(".act")}
    held: dict[str, torch.Tensor] = {}

    def retained(path: str, value: torch.Tensor) -> None:
        value.retain_grad()
        held[path] = value

    every = [path for some in paths.values() for path in some]
    with hooked(lens.module, {path: (lambda out, path=path: retained(path, out)) for path in every}):
        logits = lens.module(**batch.inputs).logits[0].log_softmax(-1)
        start = batch.prompt_length
        answer = batch.inputs["input_ids"][0, start:].tolist()
        sum(logits[start + place - 1, token] for place, token in enumerate(answer)).backward()
    lens.module.zero_grad()
    found = {}
    for site, some in paths.items():
        values = [held[path].detach().double().flatten(0, -2) for path in some]
        slopes = [
            torch.zeros_like(value) if held[path].grad is None else held[path].grad.double().flatten(0, -2)
            for path, value in zip(some, values, strict=True)
        ]
        product = torch.stack([(a * g).sum(0) for a, g in zip(values, slopes, strict=True)])
        strength = torch.stack([(g.abs() ** alpha * a.abs()).sum(0) for a, g in zip(values, slopes, strict=True)])
        found[site] = product, strength
    return found


def test_it_is_plain_autograd_with_hooks_summed_by_bucket(lens, samples):
    found = attributions_stage(lens, {"medical": samples}, Store(None), batch_size=3, alpha=0.5)["medical"]
    found.check()
    questions = torch.zeros(BUCKETS, dtype=torch.int64)
    sums = {site: (torch.zeros_like(value), torch.zeros_like(value)) for site, value in found.attribution.items()}
    assert {site for site in lens.sites if site.endswith(".act")} == set(sums)
    for sample in samples:
        bucket = int(hashlib.sha256(sample.images[0].read_bytes()).hexdigest(), 16) % 16
        questions[bucket] += 1
        for site, (product, strength) in by_hooks(lens, sample, 0.5).items():
            sums[site][0][bucket] += product
            sums[site][1][bucket] += strength
    assert found.questions.tolist() == questions.tolist()
    assert (questions > 0).sum() >= 2
    for site, (product, strength) in sums.items():
        assert product.abs().max() > 0, site
        torch.testing.assert_close(found.attribution[site], product, rtol=2e-3, atol=2e-6)
        torch.testing.assert_close(found.strength[site], strength, rtol=2e-3, atol=2e-4)
        mean = product.sum(0) / len(samples)
        torch.testing.assert_close(found.per_question(site), mean, rtol=2e-3, atol=2e-6)
    tokens = sum(int(asked_alone(lens, sample).inputs["attention_mask"].sum()) for sample in samples)
    assert int(found.tokens["llm.mlp.act"].sum()) == tokens
    frame = found.to_frame()
    row = frame.filter((frame["site"] == "llm.mlp.act") & (frame["layer"] == 1)).row(0, named=True)
    assert row["largest"] == found.per_question("llm.mlp.act")[1, row["neuron"]]
    assert abs(row["largest"]) == found.per_question("llm.mlp.act")[1].abs().max()


def test_at_act_it_is_what_it_is_at_post(llava, samples):
    """post = act * up, so act * dL/dact = post * dL/dpost; the values themselves differ."""
    batch = asked_alone(llava, samples[0])
    graph = gradient_sums.bind(gradient=gradient(answer_log_probability), alpha=1.0)
    out = llava.run(graph.at(["llm.mlp.act", "llm.mlp.post"]), batch)
    act, post = (out["gradient_sums", site]["attribution"] for site in ("llm.mlp.act", "llm.mlp.post"))
    assert act.abs().max() > 1e-5
    torch.testing.assert_close(act, post, rtol=1e-3, atol=1e-8)


def test_with_steps_it_is_integrated_from_a_grey_picture(llava, samples):
    sample = samples[0]
    found = attributions_stage(llava, {"medical": [sample]}, Store(None), steps=3)["medical"]
    with Image.open(sample.images[0]) as picture:
        grey = Image.new("RGB", picture.size, (127, 127, 127))
    batch = asked_alone(llava, sample)
    baseline = asked_alone(llava, sample, grey)
    graph = integrated_gradients.bind(gradient=gradient(answer_log_probability))
    expected = llava.run_between(graph, batch, baseline, steps=3, rule="right")["integrated_gradients"][0]
    assert list(found.attribution) == ["llm.mlp.act"]
    torch.testing.assert_close(
        found.attribution["llm.mlp.act"].sum(0), expected.double().flatten(1, 2).sum(1), rtol=1e-4, atol=1e-6
    )
    assert found.parameters == {"alpha": 1.0, "steps": 3, "rule": "right", "baseline": "a picture of the same size in grey 127"}  # noqa: E501  # fmt: skip


class Killed(BaseException):
    """In place of a signal."""


def test_what_was_killed_goes_on_and_comes_to_the_same_bits(llava, samples, tmp_path, monkeypatch):
    whole = attributions_stage(llava, {"medical": samples}, Store(None), batch_size=1)["medical"]
    runs = 0

    def run(self: Lens, *given: Any, left: int, **settings: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs > left:
            raise Killed
        return genuine(self, *given, **settings)

    genuine = Lens.run
    with monkeypatch.context() as patched:
        patched.setattr(Lens, "run", lambda *given, **settings: run(*given, left=2, **settings))
        with pytest.raises(Killed):
            attributions_stage(llava, {"medical": samples}, Store(tmp_path), batch_size=1)
    runs = 0
    with monkeypatch.context() as patched:
        patched.setattr(Lens, "run", lambda *given, **settings: run(*given, left=99, **settings))
        again = attributions_stage(llava, {"medical": samples}, Store(tmp_path), batch_size=1)["medical"]
        assert runs == len(samples) - 2
        attributions_stage(llava, {"medical": samples}, Store(tmp_path), batch_size=1)
        assert runs == len(samples) - 2
    for name in ("attribution", "strength", "tokens"):
        for site, value in getattr(whole, name).items():
            assert torch.equal(value, getattr(again, name)[site]), (name, site)
    saved = Attributions.load(tmp_path / "attributions" / "embedded+llava-next" / "medical.safetensors")
    assert torch.equal(saved.attribution["llm.mlp.act"], whole.attribution["llm.mlp.act"])
    with pytest.raises(mm.MMNeuronError, match=r"parameters alpha is 1\.0 there and 2\.0 here"):
        attributions_stage(llava, {"medical": samples}, Store(tmp_path), batch_size=1, alpha=2)


def test_samples_without_an_answer_are_named_and_left_out(samples, tmp_path):
    lens = lens_of("llava_next")
    silent = replace(samples[1], answers=())
    with pytest.raises(SampleRefused, match="it has no answer whose log-probability could be attributed"):
        attributions_stage(lens, {"medical": [samples[0], silent]}, Store(None))
    problems = Problems(tmp_path / "questions.jsonl", lines={one.id: number for number, one in enumerate(samples)})
    found = attributions_stage(lens, {"medical": [samples[0], silent]}, Store(None), problems=problems)["medical"]
    assert found.samples == 1
    assert ["line 1: it has no answer" in str(one) for one in problems] == [True]
    with pytest.raises(NoneLeft, match="it has no answer"):
        attributions_stage(lens, {"medical": [silent]}, Store(None), problems=problems)
    for settings, says in (({"alpha": -1.0}, r"alpha is -1\.0"), ({"steps": -1}, "steps is -1")):
        with pytest.raises(ValueError, match=says):
            attributions_stage(lens, {"medical": samples}, Store(None), **settings)


def test_what_is_read_travels_without_this_package():
    shipped = bare(gradient_sums)
    assert set(shipped.__globals__) == {"__builtins__", "__name__", "_sums"}
    value, slope = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    value[0, 0], weight = torch.nan, torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = shipped(value, slope, weight, 2.0)
    kept = value.flatten(0, 1)[1:].double(), slope.flatten(0, 1)[1:].double()
    torch.testing.assert_close(found["attribution"], (kept[0] * kept[1]).sum(0))
    torch.testing.assert_close(found["strength"], (kept[1] ** 2 * kept[0].abs()).sum(0))
    assert int(found["positions"]) == 5


def made(**changes: Any) -> Attributions:
    questions = torch.tensor([2] + [0] * (BUCKETS - 1))
    sums = torch.randn(BUCKETS, 1, 3, dtype=torch.float64)
    one = Attributions(
        "m", "medical", questions, {"llm.mlp.act": 7 * questions}, {"llm.mlp.act": sums}, {"llm.mlp.act": sums.abs()},
        {"alpha": 1.0}, 2,
    )  # fmt: skip
    return replace(one, **changes)


def test_what_cannot_be_is_refused_by_its_field():
    made().check()
    site, short = "llm.mlp.act", torch.zeros(BUCKETS, 1, 2, dtype=torch.float64)
    for changes, says in (
        ({"samples": 3}, "questions are 2, and samples 3"),
        ({"attribution": {}}, "attribution names no site"),
        ({"questions": torch.zeros(3, dtype=torch.int64)}, r"questions is torch.int64 \[3\]"),
        ({"strength": {}}, "strength names the sites"),
        ({"strength": {site: -made().strength[site]}}, "strength/llm.mlp.act has values below 0"),
        ({"strength": {site: short}}, r"strength/llm.mlp.act is torch.float64 \[16, 1, 2\]"),
        ({"attribution": {site: short.float()}}, "attribution/llm.mlp.act is torch.float32"),
        ({"tokens": {site: torch.zeros(BUCKETS)}}, "tokens/llm.mlp.act is torch.float32"),
    ):
        with pytest.raises(ValueError, match=says):
            made(**changes).check()
    with pytest.raises(KeyError, match=r"no attributions at site 'x'; choose from llm\.mlp\.act"):
        made().per_question("x")
    with pytest.raises(ValueError, match="of no question"):
        made(questions=torch.zeros(BUCKETS, dtype=torch.int64)).per_question(site)
