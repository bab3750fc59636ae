"""The selection against an independent writing of the published procedure, in exact fractions and plain loops."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.selection import MODULES, Selection
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.neurons.selection import random_like, select, select_module
from mmneuron_lens.report.tables import neurons_per_domain

SITES = {"qformer.text.act": 1, "llm.mlp.act": 3, "vision.mlp.act": 2, "qformer.query.act": 1}


@cache
def entropy(shares: tuple[Fraction, ...]) -> Decimal:
    """To 24 decimals, so that only true ties are equal (halves and eighths can tie with quarters)."""
    decimals = [Decimal(share.numerator) / Decimal(share.denominator) for share in shares if share]
    return round(-sum((share * share.ln() for share in decimals), Decimal()), 24)


def published(
    active: np.ndarray, tokens: list[int], fraction: float, percentile: float
) -> tuple[np.ndarray, Fraction, int]:
    """The procedure on counts [layer, neuron, domain]: the mask, the threshold, the number of selected neurons."""
    layers, neurons, domains = active.shape
    probability = {}
    for layer in range(layers):
        for neuron in range(neurons):
            counts = active[layer, neuron].tolist()
            probability[layer, neuron] = [
                Fraction(m, n) if n else Fraction(0) for m, n in zip(counts, tokens, strict=True)
            ]
    everything = sorted(value for values in probability.values() for value in values)
    threshold = everything[round(percentile * len(everything)) - 1]
    survivors = []
    for place, values in probability.items():
        if any(value > threshold for value in values):
            survivors.append((entropy(tuple(sorted(value / sum(values) for value in values))), place))
    survivors.sort()
    mask = np.zeros((layers, neurons, domains), dtype=bool)
    selected = survivors[: round(fraction * (layers * neurons))]
    for _, place in selected:
        for domain in range(domains):
            mask[place][domain] = probability[place][domain] > threshold
    return mask, threshold, len(selected)


def random_case(seed: int) -> tuple[np.ndarray, list[int], float, float]:
    rng = np.random.default_rng(seed)
    layers, neurons, domains = int(rng.integers(1, 4)), int(rng.integers(5, 40)), int(rng.integers(1, 6))
    tokens = rng.integers(1, [3, 12, 1000][seed % 3] + 1, domains)
    if seed % 4 == 1:
        tokens[rng.integers(domains)] = 0
    active = rng.integers(0, tokens + 1, (layers, neurons, domains))
    active[rng.random(active.shape) < [0.0, 0.5, 0.9][seed // 3 % 3]] = 0
    active[rng.random((layers, neurons)) < 0.2] = 0
    if seed % 5 == 2 and neurons > 10:
        active[:, 5:10] = active[:, :5]
    fraction = float(rng.choice([0.01, 0.05, 0.2, 0.5, 1.0]))
    percentile = float(rng.choice([0.5, 0.8, 0.95, 0.95, 1.0]))
    return active, tokens.tolist(), fraction, percentile


def test_equals_the_published_procedure_on_random_counts() -> None:
    seen = {"shortfall": 0, "empty domain": 0, "several domains": 0, "nothing": 0, "tie at the cut-off": 0}
    for seed in range(400):
        active, tokens, fraction, percentile = random_case(seed)
        if round(percentile * active.size) < 1:
            continue
        expected, threshold, count = published(active, tokens, fraction, percentile)
        probability = torch.from_numpy(active / np.maximum(tokens, 1))
        found = select_module(probability, fraction, percentile)
        assert found.mask.numpy().tolist() == expected.tolist(), seed
        assert found.threshold == float(threshold)
        assert found.selected == count == int(found.mask.any(-1).sum())
        assert found.requested == round(fraction * (active.shape[0] * active.shape[1]))
        assert found.shortfall == found.requested - count >= 0
        assert found.entropy.isnan().numpy().tolist() == (active.sum(-1) == 0).tolist()
        survives = (probability > found.threshold).any(-1)
        chosen = found.mask.any(-1)
        last = found.entropy[chosen].max() if count else torch.tensor(-1.0)
        seen["shortfall"] += found.shortfall > 0
        seen["empty domain"] += 0 in tokens
        seen["several domains"] += bool((found.mask.sum(-1) > 1).any())
        seen["nothing"] += count == 0
        seen["tie at the cut-off"] += bool((survives & ~chosen & ((found.entropy - last).abs() < 1e-9)).any())
    assert min(seen.values()) >= 10, seen


def test_ties_go_to_the_lowest_layer_and_neuron() -> None:
    probability = torch.full((3, 20, 2), 0.1, dtype=torch.float64)
    for layer, neuron, domain, value in ((2, 3, 0, 0.9), (1, 7, 1, 0.9), (1, 4, 0, 0.3), (0, 9, 0, 0.9)):
        probability[layer, neuron] = 0.0
        probability[layer, neuron, domain] = value
    found = select_module(probability, fraction=3 / 60)
    assert found.mask.any(-1).nonzero().tolist() == [[0, 9], [1, 4], [1, 7]]


def test_equal_shares_tie_although_floats_differ() -> None:
    """1/10 : 3/10 and 3/10 : 9/10 are one entropy; in float64 the second comes out smaller."""
    probability = torch.full((1, 30, 2), 0.05, dtype=torch.float64)
    probability[0, 4] = torch.tensor([1 / 10, 3 / 10])
    probability[0, 5] = torch.tensor([3 / 10, 9 / 10])
    found = select_module(probability, fraction=1 / 30)
    assert found.entropy[0, 4] != found.entropy[0, 5]
    assert found.mask.any(-1).nonzero().tolist() == [[0, 4]]


def test_the_threshold_is_one_of_the_probabilities_and_strict() -> None:
    probability = torch.arange(1, 101, dtype=torch.float64).view(1, 50, 2) / 100
    found = select_module(probability, fraction=1.0)
    assert found.threshold == 0.95
    assert found.mask.nonzero().tolist() == [[0, 47, 1], [0, 48, 0], [0, 48, 1], [0, 49, 0], [0, 49, 1]]
    assert found.shortfall == 47


def test_all_zero_probabilities_select_nothing() -> None:
    found = select_module(torch.zeros(2, 10, 5, dtype=torch.float64), fraction=0.1)
    assert (found.selected, found.requested, found.shortfall) == (0, 2, 2)


def test_bad_arguments_are_named() -> None:
    probability = torch.rand(1, 10, 2, dtype=torch.float64)
    for name in ("fraction", "percentile"):
        for value in (0.0, 1.5, -1.0, float("nan")):
            with pytest.raises(ValueError, match=f"{name} is {value}; it must be above 0 and at most 1"):
                select_module(probability, **{name: value})
    for wrong in (probability * 3, probability - 1, probability * float("nan"), probability[:, :0]):
        with pytest.raises(ValueError, match=r"are empty or outside \[0, 1\]"):
            select_module(wrong)


def counts_of(domain: str, seed: int, neurons: int = 60, **provenance: Any) -> Counts:
    generator = torch.Generator().manual_seed(seed)
    kinds = {site: ("image", "text") for site in SITES}
    tokens = {site: torch.randint(5, 30, (BUCKETS, 2), generator=generator) for site in SITES}
    active = {}
    for site, layers in SITES.items():
        rate = torch.rand(1, layers, 1, neurons, generator=generator, dtype=torch.float64) ** 2
        active[site] = torch.floor(rate * tokens[site][:, None, :, None]).long()
    return Counts("m", domain, active, tokens, kinds, 100 + seed, {"dtype": "float32", **provenance})


def all_counts(**changes: Any) -> list[Counts]:
    return [counts_of(domain, seed, corpus={"name": domain}, **changes) for seed, domain in enumerate(DOMAINS)]


def test_select_is_the_procedure_at_every_site_whatever_the_order_of_domains() -> None:
    counts = all_counts()
    found = select(counts[::-1], fraction=0.1)
    assert found.domains == DOMAINS
    assert list(found.masks) == ["vision.mlp.act", "qformer.query.act", "qformer.text.act", "llm.mlp.act"]
    for site in SITES:
        active = np.stack([one.total(site)[0].numpy() for one in counts], axis=-1)
        tokens = [one.total(site)[1] for one in counts]
        mask, threshold, count = published(active, tokens, 0.1, 0.95)
        assert found.masks[site].numpy().tolist() == mask.tolist()
        assert found.threshold[site] == float(threshold)
        assert found.selected(site) == count
        assert found.tokens[site].tolist() == tokens
    assert found.provenance["domains"]["medical"] == {"samples": 102, "corpus": {"name": "medical"}}
    assert found.provenance["dtype"] == "float32"


def test_select_on_some_kinds_only() -> None:
    counts = all_counts()
    found = select(counts, fraction=0.1, kinds={"llm.mlp.act": ("image",)})
    active = np.stack([one.total("llm.mlp.act", ("image",))[0].numpy() for one in counts], axis=-1)
    tokens = [one.total("llm.mlp.act", ("image",))[1] for one in counts]
    assert found.masks["llm.mlp.act"].numpy().tolist() == published(active, tokens, 0.1, 0.95)[0].tolist()
    assert torch.equal(found.masks["vision.mlp.act"], select(counts, fraction=0.1).masks["vision.mlp.act"])
    assert found.parameters["kinds"]["llm.mlp.act"] == ("image",)


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    found = select(all_counts(), fraction=0.1)
    found.save(tmp_path / "a")
    back = Selection.load(tmp_path / "a")
    for name in ("masks", "probability", "tokens"):
        for site, tensor in getattr(found, name).items():
            assert torch.equal(getattr(back, name)[site], tensor)
    assert (back.model, back.domains, back.threshold, back.requested) == (
        found.model,
        found.domains,
        found.threshold,
        found.requested,
    )
    assert list(back.masks) == list(found.masks)
    back.save(tmp_path / "b")
    select(all_counts()[::-1], fraction=0.1).save(tmp_path / "c")
    assert len({content_hash(tmp_path / name) for name in "abc"}) == 1


def test_neurons_of_a_domain_by_site_module_or_all() -> None:
    found = select(all_counts(), fraction=0.1)
    assert list(found.neurons("medical")) == list(found.masks)
    assert torch.equal(found.neurons("medical")["llm.mlp.act"], found.masks["llm.mlp.act"][..., 2])
    assert list(found.neurons("medical", "Q-Former")) == ["qformer.query.act", "qformer.text.act"]
    assert list(found.neurons("medical", "qformer.text.act")) == ["qformer.text.act"]
    with pytest.raises(KeyError, match="no domain 'satellite' in this selection; choose from common, remote_sensing"):
        found.neurons("satellite")
    with pytest.raises(
        KeyError, match=r"no site or module 'MLP Projector'; choose from vision.mlp.act, .*Q-Former, LLM"
    ):
        found.neurons("medical", "MLP Projector")
    assert set(SITES) <= set(MODULES)


def test_a_domain_without_a_neuron_keeps_its_place() -> None:
    found = select(all_counts(), fraction=0.1)
    for mask in found.masks.values():
        mask[..., DOMAINS.index("medical")] = False
    assert not any(mask.any() for mask in found.neurons("medical").values())
    for frame in (found.summary(), neurons_per_domain(found)):
        rows = frame.filter(pl.col("domain") == "medical")
        assert len(rows) * len(DOMAINS) == len(frame)
        assert rows["neurons"].sum() == 0
        assert frame["domain"].unique(maintain_order=True).to_list() == list(DOMAINS)


def test_refusals_name_the_difference() -> None:
    counts = all_counts()
    with pytest.raises(ValueError, match="cannot select from counts: provenance dtype is 'float32' and 'float16'"):
        select([counts[0], counts_of("medical", 2, dtype="float16")])
    with pytest.raises(ValueError, match="cannot select from counts: model is 'm' and 'n'"):
        select([counts[0], replace(counts[1], model="n")])
    with pytest.raises(ValueError, match=r"the shape at llm.mlp.act is \(16, 3, 2, 60\) and \(16, 3, 2, 61\)"):
        select([counts[0], counts_of("medical", 2, neurons=61)])
    for wrong in (counts[:1], [], [counts[0], counts[0]]):
        with pytest.raises(ValueError, match="do not make a selection; give the counts of two or more"):
            select(wrong)
    with pytest.raises(KeyError, match=r"Unknown selection method 'lape'\. Did you mean 'dape'\? Choices: .*random"):
        select(counts, method="lape")
    with pytest.raises(ValueError, match=r"kinds name no counted site \['projector.act'\]"):
        select(counts, kinds={"projector.act": ("image",)})
    empty = {site: torch.zeros_like(tensor) for site, tensor in counts[2].tokens.items()}
    silent = {site: torch.zeros_like(tensor) for site, tensor in counts[2].active.items()}
    with pytest.raises(
        ValueError, match=r"medical has no image/text tokens at vision.mlp.act; count it, or leave it out"
    ):
        select([*counts[:2], replace(counts[2], tokens=empty, active=silent)])


@pytest.mark.parametrize("match", ["module", "layer"])
def test_random_neurons_match_in_number_and_avoid_every_selected_one(match: Any) -> None:
    mask = select(all_counts(), fraction=0.1).masks["llm.mlp.act"]
    draws = [random_like(mask, seed, match) for seed in range(5)]
    for draw in draws:
        assert draw.shape == mask.shape
        assert draw.dtype == torch.bool
        assert draw.sum((0, 1)).tolist() == mask.sum((0, 1)).tolist()
        assert not (draw & mask.any(-1, keepdim=True)).any()
        if match == "layer":
            assert draw.sum(1).tolist() == mask.sum(1).tolist()
    assert torch.equal(draws[0], random_like(mask, 0, match))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0][..., 0], draws[0][..., 1])


def test_random_neurons_cover_all_free_ones() -> None:
    mask = torch.zeros(2, 4, 1, dtype=torch.bool)
    mask[0, :2] = True
    drawn = torch.stack([random_like(mask, seed) for seed in range(200)]).double().mean(0)
    assert drawn[mask].eq(0).all()
    assert ((drawn[~mask] - 2 / 6).abs() < 0.15).all()


def test_random_neurons_that_do_not_suffice() -> None:
    mask = torch.zeros(2, 4, 1, dtype=torch.bool)
    mask[0, :3] = True
    assert random_like(mask, 0).sum() == 3
    with pytest.raises(ValueError, match="3 random neurons wanted in layer 0, 1 are free; select a smaller fraction"):
        random_like(mask, 0, "layer")
    with pytest.raises(ValueError, match="8 random neurons wanted in the module, 0 are free"):
        random_like(torch.ones(2, 4, 1, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="no match 'site'; choose from module, layer"):
        random_like(mask, 0, "site")  # type: ignore[arg-type]


def test_html_is_short_and_escaped() -> None:
    selection = replace(select(all_counts(), fraction=0.1), model="<m>")
    html = selection._repr_html_()
    assert "&lt;m&gt;" in html
    assert "<m>" not in html
    for row in selection.summary().head(4).iter_rows(named=True):
        assert (
            f'<td>{row["domain"]}</td><td class="n">{row["neurons"]}</td><td class="n">{row["selected"]}</td>' in html
        )
    assert len(html) < 5000
