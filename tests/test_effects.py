"""Effect sizes: closed forms, a second writing in plain loops, planted differences, and domains that mean nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import polars as pl
import pytest
import torch
from test_control import SHAPES, synthetic

from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.effect_sizes import EffectSizes
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.selection import Selection, groups_of
from mmneuron_lens.neurons.effects import MINIMUM, effect_sizes, log_odds
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.report.tables import effect
from mmneuron_lens.runs.identify import find


def number(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_log_odds_in_closed_form():
    found = log_odds(
        number(30, 0, 10, 0, 5), number(100, 10, 10, 10, 20), number(10, 10, 0, 0, 5), number(100, *[10] * 3, 20)
    )
    expected = [
        math.log(30.5 / 70.5) - math.log(10.5 / 90.5),
        # Never against always: the halves keep it finite.
        math.log(0.5 / 10.5) - math.log(10.5 / 0.5),
        math.log(10.5 / 0.5) - math.log(0.5 / 10.5),
        0.0,
        0.0,
    ]
    assert found.tolist() == pytest.approx(expected)
    assert math.log(2) == MINIMUM


def small() -> tuple[list[Counts], Selection]:
    """Three domains, one site of two layers, three buckets with tokens, of different sizes."""
    generator = torch.Generator().manual_seed(3)
    counts = []
    for domain in ("common", "medical", "document"):
        tokens = torch.zeros(BUCKETS, 1, dtype=torch.int64)
        tokens[[1, 4, 9]] = torch.randint(20, 60, (3, 1), generator=generator)
        rate = torch.rand(1, 2, 1, 25, generator=generator) ** 2
        sizes = tokens[:, None, :, None].float().expand(-1, 2, -1, 25)
        active = torch.binomial(sizes, rate.expand(BUCKETS, -1, -1, -1), generator=generator).long()
        site = "llm.mlp.act"
        counts.append(Counts("m", domain, {site: active}, {site: tokens}, {site: ("text",)}, 3, {}))
    return counts, select(counts, fraction=0.2, percentile=0.7)


def test_equals_a_second_writing_with_the_same_draws():
    counts, selection = small()
    site, resamples = "llm.mlp.act", 40
    found = effect_sizes(counts[::-1], selection, resamples, seed=7)
    ordered = [next(one for one in counts if one.domain == domain) for domain in selection.domains]
    generator = torch.Generator().manual_seed(7)
    draws: list[list[list[int]]] = [[] for _ in range(resamples)]
    for one in ordered:
        filled = one.tokens[site][:, 0].nonzero().flatten().tolist()
        for draw, places in zip(
            draws, torch.randint(0, len(filled), (resamples, len(filled)), generator=generator), strict=True
        ):
            draw.append([filled[place] for place in places.tolist()])

    def measured(layer: int, neuron: int, domain: int, buckets: list[list[int]]) -> tuple[float, float]:
        totals = [
            (
                sum(int(one.active[site][b, layer, 0, neuron]) for b in chosen),
                sum(int(one.tokens[site][b, 0]) for b in chosen),
            )
            for one, chosen in zip(ordered, buckets, strict=True)
        ]
        a, n = totals.pop(domain)
        b, m = sum(part for part, _ in totals), sum(part for _, part in totals)
        odds = (a + 0.5) / (n - a + 0.5) / ((b + 0.5) / (m - b + 0.5))
        return math.log(odds), a / n - b / m

    everything = [list(range(BUCKETS))] * 3
    members = selection.masks[site].nonzero().tolist()
    assert found.members[site].tolist() == members
    assert len(members) > 9
    redrawn = numpy.array([[measured(*place, draw)[0] for place in members] for draw in draws])
    for place, row, column in zip(members, found.measured[site].tolist(), redrawn.T, strict=True):
        value, difference = measured(*place, everything)
        low, high = numpy.percentile(column, (2.5, 97.5))
        assert row == pytest.approx([value, low, high, difference])
    one = found.effect("LLM")
    assert one["memberships"] == len(members)
    values = [measured(*place, everything) for place in members]
    assert one["log_odds"]["value"] == pytest.approx(numpy.median([value for value, _ in values]))
    assert one["difference"]["value"] == pytest.approx(numpy.median([value for _, value in values]))
    ends = numpy.percentile(numpy.median(redrawn, axis=1), (2.5, 97.5))
    assert (one["log_odds"]["low"], one["log_odds"]["high"]) == pytest.approx(tuple(ends))
    above = [numpy.percentile(column, 2.5) > math.log(2) for column in redrawn.T]
    assert one["above"] == pytest.approx(numpy.mean(above))


def test_held_out_is_selected_in_one_half_and_measured_in_the_other():
    """Two buckets a domain: each half is one bucket, and so measured without an interval."""
    counts, _ = small()
    site = "llm.mlp.act"
    for one in counts:
        one.active[site][9], one.tokens[site][9] = 0, 0
    selection = select(counts, fraction=0.2, percentile=0.7)
    found = effect_sizes(counts, selection, resamples=10)

    def half(buckets: list[int]) -> list[Counts]:
        kept = torch.zeros(BUCKETS, dtype=torch.int64)
        return [
            replace(
                one,
                active={site: one.active[site] * kept.index_fill(0, torch.tensor([b]), 1)[:, None, None, None]},
                tokens={site: one.tokens[site] * kept.index_fill(0, torch.tensor([b]), 1)[:, None]},
            )
            for one, b in zip(ordered, buckets, strict=True)
        ]

    ordered = [next(one for one in counts if one.domain == domain) for domain in selection.domains]

    def measured(chosen: list[int], rest: list[int]) -> list[float]:
        mask = select(half(chosen), fraction=0.2, percentile=0.7).masks[site]
        seen = half(rest)
        values = []
        for layer, neuron, domain in mask.nonzero().tolist():
            totals = [(int(one.total(site)[0][layer, neuron]), one.total(site)[1]) for one in seen]
            a, n = totals.pop(domain)
            b, m = sum(part for part, _ in totals), sum(part for _, part in totals)
            values.append(float(log_odds(number(a), number(n), number(b), number(m))))
        return values

    # Which half is first is drawn: one of eight deals gives the number.
    medians = []
    for deal in range(8):
        chosen = [(1, 4)[deal >> place & 1] for place in range(3)]
        rest = [5 - bucket for bucket in chosen]
        medians.append(float(numpy.median(measured(chosen, rest) + measured(rest, chosen))))
    one = found.effect()["held_out"]
    assert any(one["value"] == pytest.approx(median) for median in medians)
    assert (one["low"], one["high"]) == (None, None)
    assert found.effect()["log_odds"]["low"] is not None


def test_planted_differences_have_their_size():
    """Active on 0.6 of the tokens in one domain, on 0.03 in the others."""
    counts = synthetic(planted=True)
    found = effect_sizes(counts, select(counts, fraction=0.05), resamples=100)
    assert list(found.effects) == ["Vision Encoder", "Q-Former", "qformer.query.act", "qformer.text.act", "All"]
    truth = math.log(0.6 / 0.4) - math.log(0.03 / 0.97)
    for one in found.effects.values():
        for name in ("log_odds", "held_out"):
            assert one[name]["value"] == pytest.approx(truth, abs=0.25)
            assert one[name]["low"] < one[name]["value"] < one[name]["high"]
        assert one["difference"]["value"] == pytest.approx(0.57, abs=0.03)
        assert one["above"] == 1


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_domains_that_mean_nothing_have_no_effect_held_out(spread: float):
    covered, own = [], []
    for seed in range(6):
        counts = synthetic(planted=False, seed=seed, spread=spread)
        one = effect_sizes(counts, select(counts, fraction=0.05), resamples=100, seed=seed).effect()
        held = one["held_out"]
        assert abs(held["value"] or 0) < 0.08
        covered.append((held["low"] or 0) <= 0 <= (held["high"] or 0))
        own.append(one["log_odds"]["value"])
        assert one["above"] == pytest.approx(0, abs=0.01)
    assert sum(covered) >= 4
    # What was selected is extreme in its own data: without holding out, chance looks like an effect.
    assert min(own) > 0.12


def test_small_differences_are_small_however_sure_they_are():
    """A rate of 0.30 against 0.25 on very many tokens: no chance at all, and an effect of 0.25."""
    counts = []
    site = "llm.mlp.act"
    for place, domain in enumerate(("common", "medical")):
        tokens = torch.full((BUCKETS, 1), 10**6)
        active = torch.full((BUCKETS, 1, 1, 100), 250_000)
        active[..., place] = 300_000
        active += torch.arange(BUCKETS)[:, None, None, None] * 100
        counts.append(Counts("m", domain, {site: active}, {site: tokens}, {site: ("text",)}, 3, {}))
    found = find(counts, fraction=0.02, percentile=0.95, permutations=20)
    controls = found.controls
    assert controls.discovery is not None
    assert controls.effects is not None
    assert controls.discovery.rate() == 0
    one = controls.effects.effect()
    assert one["log_odds"]["value"] == pytest.approx(0.25, abs=0.01)
    assert one["above"] == 0
    assert controls.overlap is not None
    assert controls.overlap.mean() == 1


def test_nothing_selected_and_too_few_buckets():
    counts, selection = small()
    empty = replace(selection, masks={site: torch.zeros_like(mask) for site, mask in selection.masks.items()})
    one = effect_sizes(counts, empty, resamples=10).effect()
    assert (one["memberships"], one["log_odds"]["value"], one["above"]) == (0, None, None)
    site = "llm.mlp.act"
    for part in (counts[1].active, counts[1].tokens):
        part[site][[4, 9]] = 0
    with pytest.raises(ValueError, match=r"medical has tokens in 1 bucket at llm.mlp.act; two halves need two"):
        effect_sizes(counts, select(counts, fraction=0.2, percentile=0.7))
    with pytest.raises(ValueError, match=r"was not made from these counts; select again from them"):
        effect_sizes(counts, selection)
    with pytest.raises(ValueError, match="give its counts"):
        effect_sizes(counts[:2], selection)
    assert find(counts, fraction=0.2).controls.effects is None


def test_seeded_saved_exactly_and_shown(tmp_path: Path):
    counts = synthetic(planted=False)
    selection = select(counts, fraction=0.05)
    found = effect_sizes(counts, selection, resamples=20, seed=1)
    found.save(tmp_path / "a")
    effect_sizes(counts[::-1], selection, resamples=20, seed=1).save(tmp_path / "b")
    back = EffectSizes.load(tmp_path / "a")
    back.save(tmp_path / "c")
    assert len({content_hash(tmp_path / name) for name in "abc"}) == 1
    assert list(back.effects) == list(groups_of(SHAPES)) == list(found.effects)
    assert back.effects == found.effects
    other: Any = effect_sizes(counts, selection, resamples=20, seed=2)
    assert other.effect()["log_odds"]["low"] != found.effect()["log_odds"]["low"]
    frame = back.to_frame()
    assert len(frame) == found.effect()["memberships"] == sum(int(mask.sum()) for mask in selection.masks.values())
    assert frame.filter(pl.col("low") > pl.col("high")).is_empty()
    table = effect(back)
    assert table["module"].to_list() == list(back.effects)
    assert table["log_odds"].to_list() == [one["log_odds"]["value"] for one in back.effects.values()]
    assert table["held_out_high"].to_list() == [one["held_out"]["high"] for one in back.effects.values()]
    with pytest.raises(KeyError, match="no effect of 'Brain'; choose from Vision Encoder, Q-Former"):
        back.effect("Brain")
