"""The controls on data whose truth is known: planted neurons are discoveries, shuffled labels are not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.neurons.controls import false_discovery_rate, halves_overlap
from mmneuron_lens.neurons.selection import select

SHAPES = {"vision.mlp.act": (2, 300), "qformer.query.act": (1, 200), "qformer.text.act": (1, 200)}


def synthetic(planted: bool, seed: int = 0, spread: float = 0.0) -> list[Counts]:
    """Neurons with a rate of 0.3; if planted, the first 5 % fire at 0.6 in one domain each and at 0.03 in the others.

    With `spread`, every (domain, bucket, neuron) has its own rate: domains differ, but only by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = []
    for number, domain in enumerate(DOMAINS):
        active, tokens = {}, {}
        for site, (layers, neurons) in SHAPES.items():
            rate = torch.full((BUCKETS, layers, 1, neurons), 0.3)
            rate = (rate + spread * torch.randn(rate.shape, generator=generator)).clamp(0.01, 0.99)
            if planted:
                each = neurons // 100
                rate[..., : each * len(DOMAINS)] = 0.03
                rate[..., each * number : each * number + each] = 0.6
            tokens[site] = torch.full((BUCKETS, 1), 40)
            active[site] = torch.binomial(torch.full_like(rate, 40), rate, generator=generator).long()
        counts.append(
            Counts("m", domain, active, tokens, {site: ("image",) for site in SHAPES}, 9, {"dtype": "float32"})
        )
    return counts


def test_planted_neurons_are_discoveries() -> None:
    counts = synthetic(planted=True)
    selection = select(counts, fraction=0.05)
    found = false_discovery_rate(counts, selection, permutations=10)
    halves = halves_overlap(counts, fraction=0.05)
    for site in SHAPES:
        assert selection.masks[site].any(-1).nonzero()[:, 1].max() < SHAPES[site][1] // 20
        assert found.rate(site) < 0.02
    assert found.rate() < 0.02
    assert all(value == 1 for value in halves.jaccard())


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_domains_that_mean_nothing_give_a_rate_near_one(spread: float) -> None:
    rates, overlaps = [], []
    for seed in range(3):
        counts = synthetic(planted=False, seed=seed, spread=spread)
        rates.append(false_discovery_rate(counts, select(counts, fraction=0.05), permutations=10, seed=seed).rate())
        overlaps += halves_overlap(counts, fraction=0.05, splits=3).jaccard()
    assert sum(rates) / 3 == pytest.approx(1, abs=0.3)
    assert max(overlaps) < 0.15


def test_every_null_is_the_procedure_on_shuffled_labels() -> None:
    """Written out: each cell is dealt to its shuffled domain, then select anew and count under the cut-off."""
    counts = synthetic(planted=True, seed=5)
    selection = select(counts, fraction=0.05)
    found = false_discovery_rate(counts, selection, permutations=2, seed=8)
    for site in SHAPES:
        cutoff = float(selection.entropy[site][selection.masks[site].any(-1)].max())
        generator = torch.Generator().manual_seed(8)
        labels = [number for number in range(len(DOMAINS)) for _ in range(BUCKETS)]
        for permutation in range(2):
            order = torch.randperm(len(labels), generator=generator).tolist()
            dealt: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(DOMAINS))}
            for cell in range(len(labels)):
                dealt[labels[order[cell]]].append(divmod(cell, BUCKETS))
            shuffled = []
            for number, cells in dealt.items():
                active, tokens = torch.zeros_like(counts[0].active[site]), torch.zeros_like(counts[0].tokens[site])
                for place, (domain, bucket) in enumerate(cells):
                    active[place] = counts[domain].active[site][bucket]
                    tokens[place] = counts[domain].tokens[site][bucket]
                shuffled.append(
                    replace(counts[number], active={site: active}, tokens={site: tokens}, kinds={site: ("image",)})
                )
            again = select(shuffled, fraction=0.05)
            survives = (again.probability[site] > again.threshold[site]).any(-1)
            assert found.null[site][permutation] == int((survives & (again.entropy[site] <= cutoff + 1e-12)).sum())


def test_modules_are_pooled() -> None:
    found = FalseDiscovery(
        "m",
        {"qformer.query.act": 10, "qformer.text.act": 30},
        {"qformer.query.act": (1, 3), "qformer.text.act": (5, 7)},
        {},
    )
    assert (found.count("Q-Former"), found.null_mean("Q-Former"), found.rate("Q-Former")) == (40, 8.0, 0.2)
    assert found.rate() == 0.2
    assert found.rate("qformer.query.act") == 0.2
    halves = HalvesOverlap(
        "m",
        {"qformer.query.act": (1, 2), "qformer.text.act": (3, 4)},
        {"qformer.query.act": (4, 4), "qformer.text.act": (4, 8)},
        {},
    )
    assert halves.jaccard("qformer.query.act") == (0.25, 0.5)
    assert halves.jaccard("Q-Former") == (0.5, 0.5)
    assert halves.mean("qformer.query.act") == 0.375
    assert math.isnan(FalseDiscovery("m", {"llm.mlp.act": 0}, {"llm.mlp.act": (0,)}, {}).rate())
    assert math.isnan(HalvesOverlap("m", {"llm.mlp.act": (0,)}, {"llm.mlp.act": (0,)}, {}).jaccard()[0])


def test_seeded_and_saved_exactly(tmp_path: Path) -> None:
    counts = synthetic(planted=False)
    selection = select(counts, fraction=0.05)
    found = false_discovery_rate(counts[::-1], selection, permutations=3, seed=1)
    assert found == false_discovery_rate(counts, selection, permutations=3, seed=1)
    assert found.null != false_discovery_rate(counts, selection, permutations=3, seed=2).null
    halves = halves_overlap(counts, fraction=0.05, splits=3, seed=1)
    assert halves == halves_overlap(counts[::-1], fraction=0.05, splits=3, seed=1)
    assert halves.shared != halves_overlap(counts, fraction=0.05, splits=3, seed=2).shared
    selection.save(tmp_path / "selection")
    for number, result in enumerate((found, halves)):
        result.save(tmp_path / f"{number}")
        back = type(result).load(tmp_path / f"{number}")
        back.save(tmp_path / f"{number} again")
        assert content_hash(tmp_path / f"{number}") == content_hash(tmp_path / f"{number} again")
    assert FalseDiscovery.load(tmp_path / "0").null == found.null
    assert HalvesOverlap.load(tmp_path / "1").jaccard("Q-Former") == halves.jaccard("Q-Former")


def test_empty_buckets_carry_no_label() -> None:
    counts = synthetic(planted=True)
    for one in counts:
        for site in SHAPES:
            one.active[site][3:] = 0
            one.tokens[site][3:] = 0
    assert false_discovery_rate(counts, select(counts, fraction=0.05), permutations=3).rate() < 0.5
    assert len(halves_overlap(counts, fraction=0.05, splits=2).jaccard()) == 2


def test_refusals() -> None:
    counts = synthetic(planted=True)
    selection = select(counts, fraction=0.05)
    with pytest.raises(ValueError, match="give its counts"):
        false_discovery_rate(counts[:-1], selection)
    with pytest.raises(ValueError, match=r"the selection at vision.mlp.act was not made from these counts"):
        false_discovery_rate(synthetic(planted=True, seed=9), selection)
    for site in SHAPES:
        counts[3].active[site][1:] = 0
        counts[3].tokens[site][1:] = 0
    with pytest.raises(ValueError, match=r"document has tokens in 1 bucket at vision.mlp.act; two halves need two"):
        halves_overlap(counts)
