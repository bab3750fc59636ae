"""Linear probes: against the closed form written again, on planted labels, and on labels that mean nothing."""

from __future__ import annotations

import pytest
import torch
from conftest import pictures, tiny_lens

from interventions import keep
from interventions.errors import InvalidValue, UnknownName
from mmneuron_lens.experiments import probes
from mmneuron_lens.experiments.probes import fit_probes, predicted


@pytest.fixture
def probed():
    """A lens and batches of 40 rows, of which every second asks another question."""
    lens = tiny_lens("llava_next")
    texts = [f"{'is it red' if number % 2 else 'how many'} {chr(97 + number % 13)}?" for number in range(40)]
    batches = [
        lens.encode([[one] for one in pictures(*[(32, 32)] * 10, seed=start)], texts[start : start + 10])
        for start in range(0, 40, 10)
    ]
    return lens, batches, ["colour" if number % 2 else "number" for number in range(40)]


def predicted_again(features, target, fold, classes, ridge):
    """The primal form, one class against the rest, one fold and sample at a time."""
    found = torch.zeros_like(target)
    for sample in range(len(target)):
        inside = fold == fold[sample]
        x, y = features[~inside], torch.nn.functional.one_hot(target[~inside], classes).double()
        mean, spread = x.mean(0), x.std(0)
        x, asked = (x - mean) / spread, (features[sample] - mean) / spread
        width = x.shape[1]
        weights = torch.linalg.inv(x.T @ x + ridge * width * torch.eye(width).double()) @ x.T @ (y - y.mean(0))
        found[sample] = (asked @ weights + y.mean(0)).argmax()
    return found


def test_the_dual_is_the_primal():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 12, generator=generator).double()
    targets = torch.randint(3, (2, 30), generator=generator)
    fold = torch.arange(30) % 5
    found = predicted(features, targets, fold, 3, 0.3)
    for one, target in zip(found, targets, strict=True):
        assert torch.equal(one, predicted_again(features, target, fold, 3, 0.3))
    assert len(found.unique()) == 3


def test_labels_planted_in_a_layer_are_read_there_and_not_before(probed):
    lens, batches, _ = probed
    states = torch.cat(
        [lens.run(keep.at("llm.residual"), one)["keep", "llm.residual"][0][:, :, -1] for one in batches], 1
    )
    generator = torch.Generator().manual_seed(2)
    # A direction of the last layer that earlier layers do not have: of random weights, a linear map of none of them.
    direction = torch.randn(32, generator=generator)
    value = states[2] @ direction
    rest = torch.cat([states[0], torch.ones(40, 1)], 1)
    value = value - rest @ torch.linalg.lstsq(rest, value).solution
    labels = ["high" if one else "low" for one in (value > value.median()).tolist()]
    found = fit_probes(lens, batches, labels, ridge=0.03)
    assert found.classes == ("high", "low")
    assert found.accuracy[2] > found.accuracy[0] + 0.15
    assert found.accuracy[0] < 0.65


def test_what_the_question_asks_is_read_and_shuffled_labels_are_not(probed):
    lens, batches, labels = probed
    found = fit_probes(lens, batches, labels, position="text", shuffles=10)
    assert (found.accuracy > 0.75).all()
    assert (found.shuffled.mean(1) - 0.5).abs().max() < 0.15
    assert torch.equal(found.selectivity, found.accuracy - found.shuffled.mean(1))
    frame = found.to_frame()
    assert frame.columns == ["layer", "accuracy", "low", "high", "shuffled", "selectivity", "samples"]
    assert frame["samples"].to_list() == [40, 40, 40]
    assert all(low <= value <= high for low, value, high in frame.select("low", "accuracy", "high").iter_rows())
    assert "Probes(model=" in repr(found)
    assert "<table" in found._repr_html_()


@pytest.mark.parametrize(("position", "site"), [(-1, "llm.residual"), ("image", "llm.mlp.post"), (-3, "llm.mlp.out")])
def test_probes_are_those_of_states_read_by_hand(probed, position, site):
    lens, batches, labels = probed
    found = fit_probes(lens, batches, labels, position=position, site=site, shuffles=0)
    states = []
    for batch in batches:
        held = lens.run(keep.at(site), batch)["keep", site][0]
        if position == "image":
            image = batch.fields["llm"]["kind"][..., 0]
            states.append(torch.stack([held[:, row, image[row]].mean(1) for row in range(batch.rows)], 1))
        else:
            states.append(held[:, :, position])
    target = torch.tensor([found.classes.index(label) for label in labels])
    generator = torch.Generator().manual_seed(0)
    fold = probes._folds(target, torch.arange(40), 5, generator, even=True)
    for layer, some in enumerate(torch.cat(states, 1).double()):
        expected = predicted_again(some, target, fold, 2, 0.1) == target
        assert (found.right[layer] == expected).float().mean() > 0.97


def test_folds_keep_groups_together_and_classes_even():
    target = torch.tensor([0] * 15 + [1] * 25)
    fold = probes._folds(target, torch.arange(40), 5, torch.Generator().manual_seed(0), even=True)
    assert [int((target[fold == one] == 0).sum()) for one in range(5)] == [3] * 5
    assert torch.bincount(fold).tolist() == [8] * 5
    group = torch.arange(40) // 4
    fold = probes._folds(target, group, 5, torch.Generator().manual_seed(0), even=False)
    assert all(len(fold[group == one].unique()) == 1 for one in range(10))
    assert torch.bincount(fold).tolist() == [8] * 5


def test_groups_keep_what_is_memorised_from_passing_for_what_is_known(probed):
    lens, _, _ = probed
    images = pictures(*[(32, 32)] * 8, seed=9)
    batch = lens.encode([[images[number // 4]] for number in range(32)], ["what is it?"] * 32)
    labels = [str(number // 4 % 2) for number in range(32)]
    alone = fit_probes(lens, batch, labels, folds=4, shuffles=20)
    together = fit_probes(lens, batch, labels, folds=4, groups=[number // 4 for number in range(32)], shuffles=20)
    assert (alone.accuracy == 1).all()
    assert (together.accuracy < 0.9).all()


def test_the_same_seed_gives_the_same_probes(probed):
    lens, batches, labels = probed
    one, other = (fit_probes(lens, batches, labels, seed=4) for _ in range(2))
    assert torch.equal(one.right, other.right)
    assert torch.equal(one.shuffled, other.shuffled)


def test_what_does_not_fit_is_refused(probed):
    lens, batches, labels = probed
    with pytest.raises(InvalidValue, match="The batches have 40 rows, and there are 39 labels; give one a row"):
        fit_probes(lens, batches, labels[1:])
    with pytest.raises(InvalidValue, match="All labels are 'a'; a probe needs at least two classes"):
        fit_probes(lens, batches, ["a"] * 40)
    with pytest.raises(InvalidValue, match="folds is 41; give 2 to 40, the number of rows"):
        fit_probes(lens, batches, labels, folds=41)
    with pytest.raises(InvalidValue, match="folds is 5; give 2 to 4, the number of groups"):
        fit_probes(lens, batches, labels, groups=[number // 10 for number in range(40)])
    with pytest.raises(UnknownName, match="Unknown kind of position 'picture'"):
        fit_probes(lens, batches, labels, position="picture")
    packed = lens.pack([(pictures((32, 32)), ["is it red?", "why"]), (pictures((32, 32)), ["is it red?", "why"])])
    with pytest.raises(InvalidValue, match="A packed batch has several prompts in a row"):
        fit_probes(lens, packed, ["a", "b"], folds=2)
    with pytest.raises(InvalidValue, match="Some row has no 'image' positions"):
        fit_probes(lens, lens.encode(None, ["one", "two"]), ["a", "b"], position="image", folds=2)
