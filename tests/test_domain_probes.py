"""Probes of the domain at every layer: against states from plain transformers and the closed form written again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus

from interventions.errors import InvalidValue
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Memory
from mmneuron_lens.corpora.folder import by_domain, read_folder, some_of
from mmneuron_lens.experiments import domain_probes, probes
from mmneuron_lens.experiments.domain_probes import probe_rows, read_domain_probes
from mmneuron_lens.report import figures
from mmneuron_lens.report.flow_figure import probe_figure


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A lens, one question an image of two domains, and their probes."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), ("common", "medical"), images=6)
    samples = {domain: some_of(some, None, 1) for domain, some in by_domain(read_folder(folder)[0]).items()}
    lens = tiny_lens("llava_next")
    return lens, samples, read_domain_probes(lens, samples, folds=3, shuffles=2, batch_size=4)


def states_by_hand(lens, sample):
    """The last position and the mean over image positions at the embedding and after every layer, [place, layer,
    hidden], by plain forward hooks.
    """
    batch, _ = encode(lens, [sample], "identification")
    assert batch is not None
    language, seen = lens.module.model.language_model, []
    handles = [
        language.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0])),
        *(layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in language.layers),
    ]
    with torch.no_grad():
        lens.module(**batch.inputs)
    for handle in handles:
        handle.remove()
    image = torch.tensor([kind == "image" for kind in batch.kind[0]])
    states = [(one[0] if isinstance(one, tuple) else one)[0] for one in seen]
    return torch.stack([torch.stack([one[-1] for one in states]), torch.stack([one[image].mean(0) for one in states])])


def ridge_again(features, target, fold, classes, ridge):
    """The primal form, one class against the rest, one sample at a time."""
    found = []
    for sample in range(len(target)):
        fitted = fold != fold[sample]
        x, y = features[fitted], torch.nn.functional.one_hot(target[fitted], classes).double()
        varies = x.std(0) > 1e-9
        mean, spread = x.mean(0)[varies], x.std(0)[varies]
        asked, x = (features[sample][varies] - mean) / spread, (x[:, varies] - mean) / spread
        penalty = ridge * features.shape[1] * torch.eye(x.shape[1]).double()
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean(0)))
        found.append(int((asked @ weights + y.mean(0)).argmax()))
    return torch.tensor(found)


def test_they_are_ridge_regression_of_states_read_by_hooks(probed):
    lens, samples, found = probed
    by_id = {(one.domain, one.id): one for some in samples.values() for one in some}
    asked = [by_id[label, name] for label, name in zip(found.labels, found.samples, strict=True)]
    assert len(asked) == 12
    assert found.classes == ("common", "medical")
    states = torch.stack([states_by_hand(lens, one) for one in asked], 2).double()
    assert states.shape[:3] == (2, 4, 12)
    target = torch.tensor([found.classes.index(one.domain) for one in asked])
    generator = torch.Generator().manual_seed(0)
    fold = probes._folds(target, torch.arange(12), 3, generator, even=True)
    shuffled = [probes._shuffled(target, torch.arange(12), generator) for _ in range(2)]
    for place in range(2):
        for layer in range(4):
            told = ridge_again(states[place, layer], target, fold, 2, 0.1)
            assert torch.equal(found.right[place, layer], told == target), (place, layer)
            control = [
                float((ridge_again(states[place, layer], one, fold, 2, 0.1) == one).double().mean()) for one in shuffled
            ]
            assert found.shuffled[place, layer].tolist() == pytest.approx(control)
    assert 0 < found.right.double().mean() < 1


def test_the_table_has_what_its_columns_say(probed):
    found = probed[2]
    frame = probe_rows([found])
    assert frame.columns == [
        *("model", "place", "layer", "accuracy", "low", "high", "shuffled", "selectivity", "chance", "questions"),
    ]
    row = frame.row(6, named=True)
    assert (row["place"], row["layer"], row["questions"], row["chance"]) == ("image", 2, 12, 50)
    assert row["accuracy"] == pytest.approx(100 * float(found.right[1, 2].double().mean()))
    assert row["selectivity"] == pytest.approx(100 * float(found.selectivity()[1, 2]))
    assert row["low"] <= row["accuracy"] <= row["high"]
    drawn = probe_figure(frame)
    (axis,) = drawn.axes
    assert [len(line.get_xdata()) for line in axis.get_lines()] == [4] * 4
    assert figures.png(drawn)[:4] == b"\x89PNG"


def test_stopped_they_go_on_and_are_the_same(probed, monkeypatch):
    lens, samples, found = probed
    keeper, real, left = Memory(), domain_probes._features, [1, 1]

    def stopping(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(*arguments)

    monkeypatch.setattr(domain_probes, "_features", stopping)
    settings = {"folds": 3, "shuffles": 2, "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        read_domain_probes(lens, samples, keeper=keeper, **settings)
    left += [1, 1]
    again = read_domain_probes(lens, samples, keeper=keeper, **settings)
    assert left == []
    assert again.samples == found.samples
    assert torch.equal(again.right, found.right)
    assert torch.equal(again.shuffled, found.shuffled)


def test_what_no_probe_can_tell_apart_is_refused(probed):
    lens, samples, _ = probed
    with pytest.raises(InvalidValue, match="domains are common; a probe tells two or more apart"):
        read_domain_probes(lens, {"common": samples["common"]})
    one = [replace(samples["medical"][0])]
    with pytest.raises(InvalidValue, match="some domain has 1 questions that can be read"):
        read_domain_probes(lens, {"common": samples["common"][:2], "medical": one})
