"""The Jacobian lens: equal to a full autograd Jacobian of plain hooks, and to what the model does when it is moved."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import newer_models
import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens
from hooks import hooked
from torch import Tensor

from interventions import GROUP_KINDS, add_vector, jacobian_lens, keep, logit_lens, per_layer
from interventions.errors import InvalidType, InvalidValue, NotFinite, UnknownName
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.experiments.fit_jacobian import fit_jacobian_lens
from mmneuron_lens.runtime.batch import Batch

STREAM = ["llm.embedding", "llm.residual"]
LAYERS, HIDDEN, SKIP = 3, 32, 3
PROMPTS = (((32, 32), "Is it red?"), ((33, 31), "why"))


@cache
def tiny(name: str = "llava_next") -> Lens:
    return tiny_lens(name)


def batch_of(*rows: int) -> Batch:
    images = [pictures(PROMPTS[row][0], seed=row)[0] for row in rows]
    return tiny().encode(images, [PROMPTS[row][1] for row in rows])


@cache
def full(row: int) -> list[Tensor]:
    """By layer, the embedding first: d h_last[p', i] / d h[p, j] of a prompt alone, float32 [p', i, p, j].

    The oracle: torch's own Jacobian of a function that puts a residual stream in place by a hook.
    """
    module, batch = tiny().module, batch_of(row)
    path = "model.language_model.layers."

    def last_of(layer: int, stream: Tensor) -> Tensor:
        seen: list[Tensor] = []
        replace = {f"{path}{layer}": lambda _: stream} if layer >= 0 else {"model.language_model.norm": lambda _: None}
        put = module.get_submodule(f"{path}0").register_forward_pre_hook(
            lambda _, args, named: ((stream, *args[1:]), named) if layer < 0 and args else None, with_kwargs=True
        )
        # The last layer's own output comes after what is put in its place.
        with hooked(module, replace), hooked(module, {f"{path}{LAYERS - 1}": lambda out: seen.append(out)}):
            module(**batch.inputs, use_cache=False)
        put.remove()
        return seen[0][0]

    found = []
    for layer in range(-1, LAYERS):
        name = "llm.embedding" if layer < 0 else "llm.residual"
        held = tiny().run(keep.at(name), batch)["keep", name][0]
        stream = held if layer < 0 else held[layer]
        made = torch.autograd.functional.jacobian(
            lambda value, layer=layer: last_of(layer, value), stream, vectorize=True
        )
        found.append(made[:, :, 0])
    return found


def expected(row: int, targets: str, kind: str | None = None) -> tuple[list[Tensor], int]:
    """The sum over source positions by layer, float64 [output, input], and how many they are."""
    batch = batch_of(row)
    places = range(SKIP, batch.prompt_length)
    sources = [one for one in places if kind in (None, batch.kind[0][one])]
    summed = []
    for whole in full(row):
        whole = whole.double()
        reached = [[one] for one in sources] if targets == "same" else [list(places)] * len(sources)
        summed.append(torch.stack([whole[to, :, at].sum(0) for at, to in zip(sources, reached, strict=True)]).sum(0))
    return summed, len(sources)


def matrices(made: JacobianLens) -> list[Tensor]:
    return [made.embedding, *made.jacobian]


def close(one: list[Tensor], other: list[Tensor], share: float = 1e-5) -> None:
    for left, right in zip(one, other, strict=True):
        assert (left.double() - right.double()).norm() <= share * right.double().norm()


@pytest.mark.parametrize("kind", [None, "text"])
@pytest.mark.parametrize("targets", ["later", "same"])
def test_it_is_the_mean_of_a_full_jacobian_over_real_positions(targets: Any, kind: str | None) -> None:
    """Of two prompts of different lengths, one of them padded in the batch and alone in the oracle."""
    batch = batch_of(0, 1)
    assert int((batch.fields["llm"]["weight"] == 0).sum()) > 0
    made = fit_jacobian_lens(tiny(), batch, targets=targets, kinds=kind and [kind], skip=SKIP)
    (first, some), (second, more) = expected(0, targets, kind), expected(1, targets, kind)
    close(matrices(made), [(one + other) / (some + more) for one, other in zip(first, second, strict=True)])
    assert (made.prompts, made.positions) == (2, some + more)


def test_each_position_to_itself_is_not_the_sum_over_later_ones() -> None:
    one, other = (expected(0, targets)[0][1] for targets in ("later", "same"))
    assert (one - other).norm() > 0.1 * one.norm()


def test_at_the_last_layer_it_is_the_identity_and_the_lens_the_logit_lens() -> None:
    batch = mixed_batch(tiny())
    made = fit_jacobian_lens(tiny(), batch, skip=0)
    assert torch.equal(made.jacobian[-1], torch.eye(HIDDEN))
    out = tiny().run(logit_lens.at(STREAM) | made.bound(tiny()), batch)
    for site in STREAM:
        plain, ours = out["logit_lens", site][0], out["jacobian_lens", site][0]
        assert {name: one.shape for name, one in plain.items()} == {name: one.shape for name, one in ours.items()}
        assert {name: one.dtype for name, one in plain.items()} == {name: one.dtype for name, one in ours.items()}
    plain, ours = out["logit_lens", STREAM[1]][0], out["jacobian_lens", STREAM[1]][0]
    assert all(torch.equal(plain[name][-1], ours[name][-1]) for name in plain)
    assert not torch.equal(plain["entropy"][0], ours["entropy"][0])


def test_it_reads_what_the_formula_says() -> None:
    """unembed(J h) with torch alone, at every layer."""
    lens, batch = tiny(), mixed_batch(tiny())
    made = fit_jacobian_lens(lens, batch)
    out = lens.run(made.bound(lens, top_k=3) | keep.at(STREAM), batch)
    model = lens.module.model.language_model
    for site, matrix in (("llm.embedding", made.embedding[None]), ("llm.residual", made.jacobian)):
        hidden = out["keep", site][0].reshape(len(matrix), *batch.inputs["input_ids"].shape, HIDDEN)
        moved = torch.einsum("lij,lrtj->lrti", matrix, hidden)
        chances = lens.module.lm_head(model.norm(moved)).softmax(-1)
        read = out["jacobian_lens", site][0]
        best = chances.topk(3)
        shape = read["tokens"].shape
        assert torch.equal(read["tokens"], best.indices.reshape(shape))
        torch.testing.assert_close(read["probabilities"], best.values.reshape(shape), rtol=1e-4, atol=1e-6)
        entropy = -(chances * chances.clamp(min=1e-30).log()).sum(-1)
        torch.testing.assert_close(read["entropy"], entropy.reshape(shape[:-1]), rtol=1e-4, atol=1e-4)


def test_two_batches_are_one_that_is_joined() -> None:
    apart = fit_jacobian_lens(tiny(), [batch_of(0), batch_of(1)], skip=SKIP)
    joined = fit_jacobian_lens(tiny(), batch_of(0, 1), skip=SKIP)
    close(matrices(apart), matrices(joined))
    torch.testing.assert_close(apart.error, joined.error, rtol=1e-4, atol=1e-7)
    assert (apart.prompts, apart.positions) == (joined.prompts, joined.positions)


def test_several_outputs_in_one_pass_are_the_same() -> None:
    batch = batch_of(0, 1)
    close(matrices(fit_jacobian_lens(tiny(), batch, chunk=5)), matrices(fit_jacobian_lens(tiny(), batch)))


def test_the_error_is_that_of_a_weighted_mean_over_prompts() -> None:
    """By the matrix of each prompt alone, one at a time; the last layer has none, one prompt cannot tell."""
    lens = tiny()
    batches = [lens.encode(pictures(size, seed=seed), [text]) for seed, (size, text) in enumerate(PROMPTS * 2)]
    alone = [fit_jacobian_lens(lens, batch) for batch in batches]
    made = fit_jacobian_lens(lens, batches)
    weight = torch.tensor([one.positions for one in alone]).double()
    for layer in range(LAYERS + 1):
        each = torch.stack([matrices(one)[layer].double() for one in alone])
        share = (weight / weight.sum())[:, None, None]
        mean = (share * each).sum(0)
        variance = (share * (each - mean).square()).sum() / (1 - share.square().sum())
        error = (variance * share.square().sum()).sqrt() / mean.norm()
        assert float(made.error[layer]) == pytest.approx(float(error), rel=1e-3, abs=1e-6)
    assert made.error[0] > 0.01
    assert bool(alone[0].error.isnan().all())


def test_a_share_of_the_outputs_a_batch_is_exact_for_these() -> None:
    """Over the same batch again and again every output has its turn, and each turn is exact."""
    batch, lens = batch_of(0, 1), tiny()
    whole = matrices(fit_jacobian_lens(lens, batch))
    close(matrices(fit_jacobian_lens(lens, [batch] * 2, samples=HIDDEN // 2)), whole)
    close(matrices(fit_jacobian_lens(lens, [batch] * 5, samples=20)), whole)
    with pytest.raises(InvalidValue, match=r"^22 of 32 output dimensions had no turn in these batches with samples=10"):
        fit_jacobian_lens(lens, [batch], samples=10)


def test_a_share_of_the_positions_is_drawn_from_each_prompt() -> None:
    batch, lens = batch_of(0, 1), tiny()
    made = fit_jacobian_lens(lens, batch, positions=4, targets="same", seed=1)
    assert made.positions == 8
    again, other = (fit_jacobian_lens(lens, batch, positions=4, targets="same", seed=seed) for seed in (1, 2))
    assert torch.equal(made.jacobian, again.jacobian)
    assert not torch.equal(made.jacobian, other.jacobian)
    every = fit_jacobian_lens(lens, batch, positions=10_000, targets="same")
    close(matrices(every), matrices(fit_jacobian_lens(lens, batch, targets="same")))


MOVED = ("qwen3_vl", "gemma3", "paligemma2", "glm4v", "idefics3", "instructblip", "blip2_opt")


def any_lens(name: str) -> Lens:
    if name == "blip2_opt":
        import tiny_models

        return Lens.wrap(*tiny_models.blip2())
    return tiny(name) if name == "instructblip" else Lens.wrap(*getattr(newer_models, name)())


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("name", MOVED)
def test_in_every_architecture_it_says_how_the_last_layer_moves(name: str) -> None:
    """The last position of a prompt with two images where there may be two: the residual stream moved a little each way
    with this package's own write, and what becomes of the last layer."""
    lens = any_lens(name)
    several = lens.architecture.facts["images_in_text"] and name not in ("paligemma2",)
    images: list[Any] = [pictures((32, 32), (40, 33))] if several else pictures((32, 32))
    batch = lens.encode(images, ["what"])
    length = int((batch.fields["llm"]["weight"] > 0).sum())
    made = fit_jacobian_lens(lens, batch, skip=length - 1)
    assert made.positions == 1
    size, layers = made.embedding.shape[0], len(made.jacobian)
    assert torch.equal(made.jacobian[-1], torch.eye(size))
    end = keep.at("llm.residual", layers=-1, positions=[-1])
    for layer in (None, 0):
        site = "llm.residual" if layer == 0 else "llm.embedding"
        held = lens.run(keep.at(site, positions=[-1]), batch)["keep", site][0]
        step = 3e-3 * float((held if layer is None else held[0]).norm())
        for seed in range(2):
            way = torch.nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(seed)), dim=0)
            moved = []
            for sign in (1, -1):
                write = add_vector.at(site, layers=layer, positions=[-1]).bind(vector=sign * step * way)
                moved.append(lens.run(write | end, batch)["keep", "llm.residual"][0].flatten())
            found = (moved[0] - moved[1]) / (2 * step)
            told = (made.embedding if layer is None else made.jacobian[0]) @ way
            assert (found - told).norm() < 0.02 * told.norm(), (layers, layer)


def test_the_model_is_left_as_it_was() -> None:
    lens = tiny()
    before = {name: (weight.requires_grad, weight.grad) for name, weight in lens.module.named_parameters()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lens.module.modules())
    fit_jacobian_lens(lens, batch_of(0))
    assert {name: (weight.requires_grad, weight.grad) for name, weight in lens.module.named_parameters()} == before
    assert hooks == sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in lens.module.modules())
    with pytest.raises(UnknownName):
        fit_jacobian_lens(lens, batch_of(0), kinds=["image", "sound"])
    assert all(weight.requires_grad for weight in lens.module.parameters())


def test_saved_and_loaded_it_is_the_same_and_of_no_other_model(tmp_path) -> None:
    lens, batch = tiny(), batch_of(0)
    made = fit_jacobian_lens(lens, batch, kinds=["text"])
    made.save(tmp_path / "lens.safetensors")
    again = JacobianLens.load(tmp_path / "lens.safetensors")
    assert again.parameters == made.parameters
    assert again.provenance["fingerprint"] == again.fingerprint == lens.model.fingerprint
    assert again.bound(lens) == made.bound(lens)
    one, other = (lens.run(found.bound(lens, sites="llm.residual"), batch) for found in (made, again))
    read, same = one["jacobian_lens"][0], other["jacobian_lens"][0]
    assert all(torch.equal(read[name], same[name]) for name in read)
    with pytest.raises(InvalidValue) as caught:
        again.bound(tiny("instructblip"))
    assert str(caught.value).startswith(
        f"This Jacobian lens was fitted on {lens.name} (fingerprint {lens.model.fingerprint[:12]}), and the model is "
    )
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownName, match=r"Choices: llm\.embedding, llm\.residual"):
        again.bound(lens, sites="llm.norm")
    with pytest.raises(InvalidValue, match="sites names none"):
        again.bound(lens, sites=[])


def test_a_changed_weight_is_another_model() -> None:
    import copy

    made, other = fit_jacobian_lens(tiny(), batch_of(0)), copy.deepcopy(tiny().module)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    with pytest.raises(InvalidValue, match="other weights, dtype or processor"):
        made.bound(Lens.wrap(other, tiny().processor))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"targets": "all"}, InvalidValue, "targets is 'all'; choose from later, same"),
        ({"skip": -1}, InvalidValue, "skip is -1; it is at least 0"),
        ({"skip": 999}, InvalidValue, r"skip=999 leaves nothing of row 0, a prompt of \d+ positions; give a smaller"),
        ({"positions": 0}, InvalidValue, "positions is 0; it is at least 1"),
        ({"samples": 1.5}, InvalidType, "samples is a whole number, not 1.5"),
        ({"chunk": True}, InvalidType, "chunk is a whole number, not True"),
        ({"kinds": "text"}, InvalidType, "kinds is a list of kinds of position"),
        ({"kinds": []}, InvalidType, "kinds is a list of kinds of position"),
        ({"kinds": ["sound"]}, UnknownName, f"Unknown kind of position 'sound'.*{', '.join(GROUP_KINDS['llm'])}"),
        ({"kinds": ["generated"]}, UnknownName, "no prompt of a batch has generated positions"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        fit_jacobian_lens(tiny(), batch_of(0), **settings)
    assert "\n" not in str(caught.value)


def test_batches_that_cannot_be_are_refused() -> None:
    lens = tiny()
    packed = lens.pack([(pictures((32, 32)), ["Is it red?", "why"])])
    with pytest.raises(InvalidValue, match=r"rows of one prompt each; make the batch with lens\.encode"):
        fit_jacobian_lens(lens, packed)
    with pytest.raises(InvalidValue, match="made for another model"):
        fit_jacobian_lens(tiny("instructblip"), batch_of(0))
    with pytest.raises(InvalidValue, match="There is no batch to run"):
        fit_jacobian_lens(lens, [])


def test_gradients_that_are_not_finite_are_refused(monkeypatch) -> None:
    from mmneuron_lens.experiments.jacobian_sums import JacobianSums

    plain = JacobianSums.mean

    def broken(self: JacobianSums, samples: int | None) -> Any:
        mean, error = plain(self, samples)
        mean[2, 0, 0] = math.inf
        return mean, error

    monkeypatch.setattr(JacobianSums, "mean", broken)
    with pytest.raises(NotFinite, match=r"^llm\.residual, layer 1: 1 numbers read there are infinite or NaN"):
        fit_jacobian_lens(tiny(), batch_of(0))


def test_matrices_of_other_sizes_are_refused_before_the_model_runs() -> None:
    lens = tiny()
    with pytest.raises(InvalidValue, match=r"llm\.residual has 3 layers"):
        lens.run(jacobian_lens.bind(jacobian=per_layer(torch.zeros(2, HIDDEN, HIDDEN))), batch_of(0))
    with pytest.raises(Exception, match=r"jacobian_lens does not fit llm\.residual.*argument jacobian"):
        lens.run(jacobian_lens.bind(jacobian=per_layer(torch.zeros(LAYERS, HIDDEN, 5))), batch_of(0))
