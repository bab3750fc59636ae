"""Planted neurons: the comparison finds those that matter and no others, and they matter as plain hooks say."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest
import torch
from hooks import hooked

from mmneuron_lens import Lens, load_corpus
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.evaluation.planted import IMPORTANT, PLANTED, PlantedCheck
from mmneuron_lens.experiments import planted as planted_file
from mmneuron_lens.experiments.planted import plant, planted_check


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lens = Lens("embedded/instructblip")
    by_domain = load_corpus("drawn", images=5, questions_per_image=1).by_domain().values()
    samples = [one for some in zip(*by_domain, strict=True) for one in some][:16]
    weights = {name: value.clone() for name, value in lens.module.state_dict().items()}
    check = planted_check(lens, samples, sets=20, size=2, draws=5)
    return SimpleNamespace(lens=lens, samples=samples, weights=weights, check=check)


def test_what_matters_is_found_and_nothing_else(study):
    frame = study.check.to_frame()
    assert frame["kind"].value_counts(sort=True)["count"].to_list() == [20, 20]
    assert set(frame["neurons"]) == {2}
    assert study.check.recall >= 0.95
    assert study.check.false_alarms == 0
    idle = frame.filter(pl.col("kind") == "idle")
    assert idle["change"].abs().max() == 0
    said = frame.filter(pl.col("kind") == IMPORTANT)
    assert study.check.recall == sum(verdict == "holds" for verdict in said["verdict"]) / 20


def test_the_model_itself_is_untouched(study):
    for name, value in study.lens.module.state_dict().items():
        assert torch.equal(value, study.weights[name]), name


def test_planted_neurons_matter_as_plain_hooks_say(study):
    planted = plant(study.lens, study.samples, sets=20, size=2)
    module = planted.lens.module
    layer = len(module.language_model.model.layers) - 1
    down = f"language_model.model.layers.{layer}.mlp.act_fn"
    batch, _ = encode(planted.lens, study.samples[::6], "evaluation", answered=True)
    assert batch is not None
    answer = batch.fields["llm"]["answer"]

    def likely(off: torch.Tensor | None) -> torch.Tensor:
        hooks = {} if off is None else {down: lambda out: out.masked_fill(off, 0)}
        with torch.no_grad(), hooked(module, hooks):
            logits = module(**batch.inputs).logits[:, -answer.shape[1] :].log_softmax(-1)
        return (logits.gather(-1, answer.clamp_min(0)[..., None])[..., 0] * (answer >= 0)).sum(1)

    before, comparison = likely(None), study.check.comparison
    for one in planted.sets[::4]:
        change = likely(one.masks["llm.mlp.act"][layer]) - before
        if one.method.startswith(IMPORTANT):
            # Every answer is less likely without it.
            assert bool((change < 0).all())
        else:
            assert not bool(change.any())
        said = comparison.place(one.method, PLANTED, one.fraction)
        ids = [f"{sample.domain} {sample.id}" for sample in study.samples[::6]]
        columns = [comparison.questions.index((PLANTED, name)) for name in ids]
        assert torch.allclose(comparison.change[said, columns], change, atol=2e-4)


def test_a_check_that_finds_nothing_says_so(study):
    comparison = study.check.comparison
    blind = PlantedCheck(type(comparison)(**{**vars(comparison), "change": torch.zeros_like(comparison.change)}))
    assert (blind.recall, blind.false_alarms) == (0, 0)


def test_more_sets_than_fit_are_refused(study):
    with pytest.raises(ValueError, match=r"2000 sets of 2 are more than half of the layer's 512 neurons"):
        planted_file.plant(study.lens, study.samples, sets=1000, size=2)
