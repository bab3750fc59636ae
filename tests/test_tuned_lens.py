"""The tuned lens: identity maps are the logit lens, and training brings held-out positions nearer to the model."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import newer_models
import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens
from torch import Tensor

import mmneuron_lens as mm
from interventions import keep, logit_lens, per_layer, tuned_lens
from interventions.errors import InvalidType, InvalidValue, UnknownName
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.artifacts.tuned_lens import TunedLens
from mmneuron_lens.experiments.fit_jacobian import fit_jacobian_lens
from mmneuron_lens.experiments.fit_tuned import fit_tuned_lens
from mmneuron_lens.runtime.batch import Batch

STREAM = ["llm.embedding", "llm.residual"]
LAYERS, HIDDEN = 3, 32


@cache
def tiny(name: str = "llava_next") -> Lens:
    return tiny_lens(name)


@cache
def fitted() -> TunedLens:
    return fit_tuned_lens(tiny(), batches()[:2], held_out=batches()[2], steps=6)


@cache
def batches() -> list[Batch]:
    texts = (("Is it red?", "how many cars?"), ("why", "what is in it?"), ("where", "is it a house?"))
    return [
        tiny().encode(pictures((32, 32), (40, 33), seed=seed), list(some)) for seed, some in enumerate(texts)
    ]  # fmt: skip


def final_and_states(lens: Lens, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the model itself at real positions, states by layer, and which positions these are."""
    with torch.no_grad():
        seen = lens.module(**batch.inputs, use_cache=False, output_hidden_states=True)
    real = batch.inputs["attention_mask"].bool()
    held = lens.run(keep.at(STREAM), batch)
    states = torch.cat([held["keep", STREAM[0]][0][None], held["keep", STREAM[1]][0]])
    return seen.logits[real].double(), states[:, real], real


def divergences(made: TunedLens, lens: Lens, batch: Batch) -> Tensor:
    """By layer, the mean of sum p (log p - log q), with softmax in float64 and the model's own logits as p."""
    logits, states, _ = final_and_states(lens, batch)
    weight = torch.cat([made.embedding_weight[None], made.weight])
    bias = torch.cat([made.embedding_bias[None], made.bias])
    model, chances = lens.module.model.language_model, logits.softmax(-1)
    found = []
    for layer, state in enumerate(states):
        mapped = torch.einsum("ij,pj->pi", weight[layer], state) + bias[layer]
        with torch.no_grad():
            other = lens.module.lm_head(model.norm(mapped)).double().softmax(-1)
        found.append((chances * (chances.log() - other.log())).sum(-1).mean())
    return torch.stack(found)


def identity(made: TunedLens) -> TunedLens:
    eye = torch.eye(HIDDEN)
    return replace(
        made,
        weight=eye.expand(LAYERS, -1, -1).contiguous(),
        bias=torch.zeros(LAYERS, HIDDEN),
        embedding_weight=eye,
        embedding_bias=torch.zeros(HIDDEN),
    )


def test_identity_maps_are_the_logit_lens_to_the_bit() -> None:
    lens, batch = tiny(), mixed_batch(tiny())
    out = lens.run(logit_lens.at(STREAM) | identity(fitted()).bound(lens), batch)
    for site in STREAM:
        plain, ours = out["logit_lens", site][0], out["tuned_lens", site][0]
        assert plain.keys() == ours.keys()
        assert all(torch.equal(plain[name], ours[name]) for name in plain)


def test_it_reads_what_the_formula_says() -> None:
    lens, batch, made = tiny(), mixed_batch(tiny()), fitted()
    out = lens.run(made.bound(lens, top_k=4), batch)
    _, states, real = final_and_states(lens, batch)
    weight = torch.cat([made.embedding_weight[None], made.weight])
    bias = torch.cat([made.embedding_bias[None], made.bias])
    mapped = torch.einsum("lij,lpj->lpi", weight, states) + bias[:, None]
    with torch.no_grad():
        chances = lens.module.lm_head(lens.module.model.language_model.norm(mapped)).softmax(-1)
    read = [out["tuned_lens", site][0] for site in STREAM]
    got = torch.cat([read[0]["probabilities"][None], read[1]["probabilities"]])[:, real]
    torch.testing.assert_close(got, chances.topk(4).values, rtol=1e-4, atol=1e-6)
    entropy = torch.cat([read[0]["entropy"][None], read[1]["entropy"]])[:, real]
    torch.testing.assert_close(entropy, -(chances * chances.log()).sum(-1), rtol=1e-4, atol=1e-4)


def test_held_out_divergences_are_those_of_the_models_own_logits() -> None:
    """By the formula in float64, of the maps and of the logit lens; of the last layer none. Padding counts nowhere."""
    lens, held, made = tiny(), batches()[2], fitted()
    assert bool((held.fields["llm"]["weight"] == 0).any())
    torch.testing.assert_close(made.held_out, divergences(made, lens, held), rtol=1e-4, atol=1e-6)
    plain = divergences(identity(made), lens, held)
    torch.testing.assert_close(made.held_out_logit_lens, plain, rtol=1e-4, atol=1e-6)
    assert made.held_out_positions == int(held.inputs["attention_mask"].sum())
    assert made.held_out[-1] == made.held_out_logit_lens[-1] == 0
    assert torch.equal(made.weight[-1], torch.eye(HIDDEN))
    assert not bool(made.bias[-1].any())


def sharp() -> Lens:
    """Logits six times as far apart, so that gradients are longer than 1."""
    module = copy.deepcopy(tiny().module)
    with torch.no_grad():
        module.lm_head.weight.mul_(6)
    return Lens.wrap(module, tiny().processor)


def test_two_steps_are_those_of_the_published_optimiser_by_hand() -> None:
    """Gradients of the mean divergence by torch alone; Nesterov momentum, decay of weights, clipping and the falling
    rate written out. Chunks and batches in their order."""
    lens, rate, decay, momentum = sharp(), 0.7, 0.01, 0.9
    made = fit_tuned_lens(
        lens, batches()[:2], held_out=batches()[2], steps=2, learning_rate=rate, weight_decay=decay, chunk=7
    )
    model, layer = lens.module.model.language_model, 1
    added, bias = torch.zeros(HIDDEN, HIDDEN), torch.zeros(HIDDEN)
    speed: list[Tensor] = [torch.zeros_like(added), torch.zeros_like(bias)]
    for step in range(2):
        logits, states, _ = final_and_states(lens, batches()[step])
        added.requires_grad_(), bias.requires_grad_()
        state, target = states[layer], logits.float().log_softmax(-1)
        other = lens.module.lm_head(model.norm(state + state @ added.T + bias)).log_softmax(-1)
        loss = (target.exp() * (target - other)).sum(-1).mean()
        gradients = list(torch.autograd.grad(loss, [added, bias]))
        norm = float(torch.cat([one.flatten() for one in gradients]).norm())
        assert norm > 1.5
        scale = 1 / norm
        slowed = rate * (1 - momentum) * (1 - step / 2)
        weights = [added.detach(), bias.detach()]
        for number, gradient in enumerate(gradients):
            pull = scale * gradient + decay * weights[number]
            speed[number] = momentum * speed[number] + pull
            weights[number] = weights[number] - slowed * (pull + momentum * speed[number])
        added, bias = weights
    torch.testing.assert_close(made.weight[layer - 1], torch.eye(HIDDEN) + added, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made.bias[layer - 1], bias, rtol=1e-3, atol=1e-6)
    assert made.positions == sum(int(one.inputs["attention_mask"].sum()) for one in batches()[:2])


def test_training_brings_unseen_questions_nearer_to_the_model_than_the_logit_lens() -> None:
    """On a trained model: pictures and questions that were never trained on, at every layer but the last."""
    lens, corpus = mm.Lens("embedded/llava-next"), mm.load_corpus("drawn", images=8)
    samples = [corpus[number] for number in range(0, len(corpus), 7)]
    some = [
        lens.encode([one.images[0] for one in samples[first::5]], [one.question for one in samples[first::5]])
        for first in range(5)
    ]
    made = fit_tuned_lens(lens, some[:4], held_out=some[4], steps=40)
    assert bool((made.held_out[:-1] < 0.6 * made.held_out_logit_lens[:-1]).all())
    assert made.held_out[0] > made.held_out[-2] > made.held_out[-1] == 0
    text = fit_tuned_lens(lens, some[:4], held_out=some[4], steps=2, kinds=["text"])
    assert text.held_out_positions < made.held_out_positions


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("name", ["instructblip", "qwen3_vl", "gemma3", "blip2"])
def test_it_is_fitted_in_any_architecture(name: str) -> None:
    """And of several images to a prompt, where they stand in the text."""
    import tiny_models

    home = newer_models if hasattr(newer_models, name) else tiny_models
    lens = Lens.wrap(*getattr(home, name)())
    several = lens.architecture.facts["images_in_text"]
    images: list[Any] = [pictures((32, 32), (40, 33))] if several else pictures((32, 32))
    batch, other = (lens.encode(images, [text]) for text in ("what", "is it red"))
    made = fit_tuned_lens(lens, batch, held_out=other, steps=12)
    assert bool((made.held_out[:-1] < made.held_out_logit_lens[:-1]).all())
    own = lens.run(made.bound(lens, sites="llm.residual") | logit_lens, other)
    ours, plain = own["tuned_lens"][0], own["logit_lens"][0]
    assert all(torch.equal(ours[part][-1], plain[part][-1]) for part in plain)


def test_the_model_is_left_as_it_was_and_fitting_is_repeatable() -> None:
    lens = tiny()
    before = lens.model.fingerprint
    made, again = (fit_tuned_lens(lens, batches()[:1], held_out=batches()[2], steps=2) for _ in range(2))
    assert torch.equal(made.weight, again.weight)
    assert all(weight.requires_grad and weight.grad is None for weight in lens.module.parameters())
    assert Lens.wrap(lens.module, lens.processor).model.fingerprint == before


def test_batches_come_again_and_a_generator_must_have_enough() -> None:
    lens, some, held = tiny(), batches()[:2], batches()[2]
    again = fit_tuned_lens(lens, some, held_out=held, steps=4)
    streamed = fit_tuned_lens(lens, iter([*some, *some]), held_out=iter([held]), steps=4)
    assert torch.equal(again.weight, streamed.weight)
    with pytest.raises(InvalidValue, match="the batches ended after 2 of 3 steps; give a list of them, or more"):
        fit_tuned_lens(lens, iter(some), held_out=held, steps=3)


def test_saved_and_loaded_it_is_the_same_and_of_no_other_model(tmp_path) -> None:
    lens, made, batch = tiny(), fitted(), batches()[2]
    made.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    assert again.parameters == made.parameters
    assert again.provenance["fingerprint"] == lens.model.fingerprint
    assert again.bound(lens) == made.bound(lens)
    one, other = (lens.run(found.bound(lens), batch)["tuned_lens", STREAM[1]][0] for found in (made, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(
        InvalidValue, match=r"^This tuned lens was fitted on .*, and the model is .*Fit one on this model"
    ):
        again.bound(tiny("instructblip"))
    changed = copy.deepcopy(lens.module)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    with pytest.raises(InvalidValue, match="other weights, dtype or processor"):
        again.bound(Lens.wrap(changed, lens.processor))
    replace(made, bias=made.bias[:, :3].contiguous()).save(tmp_path / "cut.safetensors")
    with pytest.raises(ArtifactError, match=r"bias is torch\.float32 \[3, 3\], not torch\.float32 \[3, 32\]"):
        TunedLens.load(tmp_path / "cut.safetensors")


def test_layers_are_read_through_a_fitted_lens() -> None:
    """What a trace holds is what the read gives; without one it is the logit lens, and says nothing of it."""
    lens, corpus = mm.Lens("embedded/llava-next"), mm.load_corpus("drawn", images=2)
    batch = lens.encode([corpus[0].images[0]], [corpus[0].question])
    made = fit_tuned_lens(lens, batch, held_out=lens.encode([corpus[1].images[0]], ["What is it?"]), steps=3)
    plain, read = (mm.read_layers(lens, corpus[0], positions=["last"], fitted=one) for one in (None, made))
    assert read.parameters == {**plain.parameters, "lens": "tuned lens"}
    assert torch.equal(read.tokens[-1], plain.tokens[-1])
    assert not torch.equal(read.entropy[0], plain.entropy[0])
    jacobian = fit_jacobian_lens(lens, batch, samples=128)
    shown = mm.read_layers(lens, corpus[0], positions=["last"], fitted=jacobian)
    assert shown.parameters["lens"] == "jacobian lens"
    assert torch.equal(shown.entropy[-1], plain.entropy[-1])
    assert not torch.equal(shown.entropy[1], plain.entropy[1])
    with pytest.raises(InvalidValue, match="This tuned lens was fitted on"):
        mm.read_layers(lens, corpus[0], fitted=fitted())


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"steps": 0}, InvalidValue, "steps is 0; it is at least 1"),
        ({"steps": 2.0}, InvalidType, "steps is a whole number, not 2.0"),
        ({"chunk": 0}, InvalidValue, "chunk is 0; it is at least 1"),
        ({"learning_rate": -1}, InvalidValue, "learning_rate is -1; it is a number from 0 on"),
        ({"weight_decay": float("nan")}, InvalidValue, "weight_decay is nan; it is a number from 0 on"),
        ({"weight_decay": "x"}, InvalidType, "weight_decay is a number, not 'x'"),
        ({"kinds": ["sound"]}, UnknownName, "Unknown kind of position 'sound'"),
        ({"held_out": []}, InvalidValue, "There is no batch to run; a held-out batch is made with"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    given: dict[str, Any] = {"held_out": batches()[2], "steps": 1, **settings}
    with pytest.raises(error, match=said) as caught:
        fit_tuned_lens(tiny(), batches()[:1], **given)
    assert "\n" not in str(caught.value)


def test_what_is_held_out_is_not_trained_on() -> None:
    with pytest.raises(InvalidValue, match="a batch is both trained on and held out"):
        fit_tuned_lens(tiny(), batches(), held_out=batches()[2])


def test_maps_of_other_sizes_are_refused_before_the_model_runs() -> None:
    weight = per_layer(torch.zeros(LAYERS, HIDDEN, HIDDEN))
    with pytest.raises(Exception, match=r"tuned_lens does not fit llm\.residual.*argument bias"):
        tiny().run(tuned_lens.bind(weight=weight, bias=per_layer(torch.zeros(LAYERS, 5))), batches()[0])
