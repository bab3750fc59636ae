"""Deviations against plain transformers: output_hidden_states=True, and hooks that zero."""

from __future__ import annotations

import pytest
import torch
from drawn_corpus import write_corpus
from hooks import hooked, neuron_paths

from interventions.bindings import PerLayer
from mmneuron_lens.artifacts.deviations import MEASURES, Deviations
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.evaluation.deviation import DeviationTable, deviation_rows
from mmneuron_lens.experiments.conditions import Off
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.deviate import deviate, deviation_conditions, frobenius_ratio
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.neurons.selection import select


@pytest.fixture
def corpus(tmp_path):
    return by_domain(read_folder(write_corpus(tmp_path, images=3))[0])


@pytest.fixture
def selection(lens, corpus):
    return select([count_domain(lens, some) for some in corpus.values()], fraction=0.3, percentile=0.6)


def masks_of(condition):
    (intervention,) = condition.graph
    bound = intervention.bindings["neurons"]
    assert isinstance(bound, PerLayer)
    return {site: mask if mask.ndim == 2 else mask[None] for site, mask in bound.values.items()}


def zeroing(lens, masks):
    return {
        path: lambda out, off=masks[site][layer]: out.masked_fill(off, 0)
        for site, paths in neuron_paths(lens).items()
        if site in masks
        for layer, path in enumerate(paths)
    }


def plain_states(lens, sample, hooks):
    """The last of transformers' own hidden states, and what enters the final norm, of one question alone."""
    batch, _ = encode(lens, [sample], "evaluation")
    norm = "model.language_model.norm" if "model.language_model" in dict(lens.module.named_modules()) else None
    before = []
    handle = lens.module.get_submodule(norm or "language_model.model.norm").register_forward_pre_hook(
        lambda _module, given: before.append(given[0])
    )
    with torch.no_grad(), hooked(lens.module, hooks):
        out = lens.module(**batch.inputs, output_hidden_states=True)
    handle.remove()
    states = out.hidden_states if getattr(out, "hidden_states", None) is not None else None
    states = out.language_model_outputs.hidden_states if states is None else states
    return states[-1][0].double(), before[0][0].double()


def ratio(first, second):
    return float((first - second).pow(2).sum().sqrt() / first.pow(2).sum().sqrt())


def test_deviations_equal_plain_transformers(lens, corpus, selection):
    samples = corpus["medical"]
    found = deviate(lens, selection, samples, random_draws=2, batch_size=4)
    conditions = deviation_conditions(selection, "medical", random_draws=2)
    assert found.conditions == tuple((one.module, one.condition) for one in conditions)
    assert found.samples == tuple(sorted(sample.id for sample in samples))
    moved = 0
    for sample in samples[:2]:
        place = found.samples.index(sample.id)
        undisturbed, before = plain_states(lens, sample, {})
        for number, condition in enumerate(conditions):
            after, before_after = plain_states(lens, sample, zeroing(lens, masks_of(condition)))
            expected = {
                "after norm": ratio(undisturbed, after),
                "before norm": ratio(before, before_after),
                "last position": ratio(undisturbed[-1], after[-1]),
            }
            for measure in MEASURES:
                # The questions went through in one padded batch, and here alone: the same up to rounding.
                assert float(found.values[measure][number, place]) == pytest.approx(expected[measure], abs=2e-5)
            moved += expected["after norm"] > 0.01
    assert moved >= len(conditions)


def test_as_many_random_neurons_in_the_module_or_in_every_layer(lens, selection):
    conditions = deviation_conditions(selection, "common", random_draws=5)
    names = [one.condition for one in conditions if one.module == "All"]
    drawn = [f"random {draw}" for draw in range(1, 6)]
    assert names == ["domain", *drawn, *(f"random by layer {draw}" for draw in range(1, 6))]
    own = masks_of(next(one for one in conditions if one.module == "All"))
    for condition in conditions:
        if condition.module != "All" or condition.condition == "domain":
            continue
        for site, mask in masks_of(condition).items():
            assert int(mask.sum()) == int(own[site].sum())
            assert not bool((mask & selection.masks[site].any(-1)).any())
            if "by layer" in condition.condition:
                assert torch.equal(mask.sum(1), own[site].sum(1))


def test_padding_does_not_count():
    before = torch.tensor([[[9.0], [3.0], [4.0]]])
    after = torch.tensor([[[1.0], [3.0], [1.0]]])
    assert float(frobenius_ratio(before, after, torch.tensor([[0, 1, 1]]))) == pytest.approx(3 / 5)
    assert float(frobenius_ratio(before, after, torch.tensor([[1, 1, 1]]))) == pytest.approx((73 / 106) ** 0.5)


def test_rows_are_means_over_questions_and_draws(tmp_path):
    conditions = (("LLM", "domain"), ("LLM", "random 1"), ("LLM", "random 2"))
    values = {measure: torch.tensor([[0.1, 0.3], [0.0, 0.2], [0.2, 0.4]]).double() for measure in MEASURES}
    found = Deviations("<m>", "medical", conditions, ("a", "b"), values, {"seed": 0}, {"model id": "<m>"})
    found.save(tmp_path / "d.safetensors")
    again = Deviations.load(tmp_path / "d.safetensors")
    assert (again.model, again.conditions, again.samples) == (found.model, found.conditions, found.samples)
    assert torch.equal(again.values["after norm"], values["after norm"])
    own, random = deviation_rows([again])
    assert DeviationTable([again]).to_frame().to_dicts() == [own, random]
    assert own["deviation"] == pytest.approx(20.0)
    assert (own["low"], own["high"]) == (pytest.approx(10.0), pytest.approx(30.0))
    assert random["deviation"] == pytest.approx(20.0)
    # The draws' means are 10 and 30 per cent.
    assert random["spread"] == pytest.approx(200**0.5)
    with pytest.raises(KeyError, match="no deviation of LLM/none; choose from LLM/domain, LLM/random 1"):
        found.of("LLM", "none")


def test_other_ways_to_switch_neurons(lens, corpus, selection):
    """Scaling by 1 changes nothing, by 0 what zero does; the mean is the plain mean over the questions' positions."""
    samples = corpus["common"][:2]
    zero, nothing, none = (
        deviate(lens, selection, samples, random_draws=0, off=off)
        for off in (Off(), Off("scale", 1.0), Off("scale", 0.0))
    )
    assert float(nothing.values["after norm"].max()) == 0.0
    assert torch.equal(zero.values["after norm"], none.values["after norm"])
    assert none.parameters["off"] == "scale 0.0"
    means = mean_activations(lens, {"common": samples}, batch_size=2).values
    (path, site) = (neuron_paths(lens)["llm.mlp.act"][1], "llm.mlp.act")
    seen: list[torch.Tensor] = []
    for sample in samples:
        batch, _ = encode(lens, [sample], "evaluation")
        assert batch is not None
        with torch.no_grad(), hooked(lens.module, {path: lambda out: seen.append(out[0])}):
            lens.module(**batch.inputs)
    torch.testing.assert_close(means[site][1], torch.cat(seen).double().mean(0), atol=1e-6, rtol=1e-5)
    held = deviate(lens, selection, samples, random_draws=0, off=Off("mean", means=means))
    assert held.parameters["off"].startswith("mean ")
    assert 0 < float(held.values["after norm"].mean()) < float(zero.values["after norm"].mean())
    with pytest.raises(ValueError, match="mean ablation needs the means; give means=mean_activations"):
        Off("mean")
    with pytest.raises(ValueError, match="no way 'flip' to switch neurons; choose from zero, mean, scale"):
        Off("flip")  # type: ignore[arg-type]


def test_what_cannot_be_compared_is_named(lens, corpus, selection):
    with pytest.raises(ValueError, match=r"deviations are of one domain, and these 12 samples are of \['common', 'med"):
        deviate(lens, selection, [*corpus["common"], *corpus["medical"]])
