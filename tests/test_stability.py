"""Stability against a second writing with sets, and on data whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch

from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.neurons.stability import stability
from mmneuron_lens.report.stability import save_stability, stability_table

SITE = "llm.mlp.act"


def drawn(domain: str, preferred: range, tokens: int = 40) -> Counts:
    """Neurons that prefer this domain are active at 9 of 10 tokens, the others at 3 of 10."""
    generator = torch.Generator().manual_seed(len(domain))
    probability = torch.full((2, 200), 0.3)
    probability[0, list(preferred)] = 0.9
    spread = probability[None, None].expand(BUCKETS, tokens, 2, 200)
    active = torch.bernoulli(spread, generator=generator).sum(1).long()[:, :, None]
    return Counts("m", domain, {SITE: active}, {SITE: torch.full((BUCKETS, 1), tokens)}, {SITE: ("text",)}, 9, {})


COUNTS = [drawn("common", range(0, 5)), drawn("medical", range(5, 10))]


def test_strong_neurons_are_found_again_and_noise_is_not(tmp_path):
    found = stability(COUNTS, fraction=10 / 400, percentile=0.9)
    assert [(buckets, tokens) for buckets, tokens, _ in found.rows[SITE]] == [(1, 40), (2, 80), (4, 160), (8, 320)]
    frame = found.frame()
    assert frame["jaccard"][-1] == 1.0
    assert frame["jaccard"][-1] > frame["jaccard"][0]
    noise = [drawn("common", range(0)), drawn("medical", range(0))]
    assert stability(noise, fraction=10 / 400).frame()["jaccard"].max() < 0.3
    assert stability_table(found).row_count == 4
    assert pl.read_csv(save_stability(found, tmp_path)).height == 4


def test_halves_equal_a_second_writing_with_sets():
    from mmneuron_lens.neurons.selection import select

    size, draws = 8, 3
    (row,) = [row for row in stability(COUNTS, 0.05, 0.9, draws=draws).rows[SITE] if row[0] == size]
    generator = torch.Generator().manual_seed(0)
    for before in (1, 2, 4, 8):
        overlaps = []
        for _ in range(draws):
            orders = [torch.randperm(BUCKETS, generator=generator) for _ in COUNTS]
            sets = []
            for part in (slice(0, before), slice(before, 2 * before)):
                parts = []
                for one, order in zip(COUNTS, orders, strict=True):
                    out = torch.ones(BUCKETS, dtype=torch.bool)
                    out[order[part]] = False
                    active, tokens = one.active[SITE].clone(), one.tokens[SITE].clone()
                    active[out], tokens[out] = 0, 0
                    parts.append(replace(one, active={SITE: active}, tokens={SITE: tokens}))
                mask = select(parts, 0.05, 0.9).masks[SITE].any(-1)
                sets.append({tuple(place) for place in mask.nonzero().tolist()})
            overlaps.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert row[2] == pytest.approx(overlaps)


def test_too_few_buckets_are_refused():
    active, tokens = COUNTS[0].active[SITE].clone(), COUNTS[0].tokens[SITE].clone()
    active[1:], tokens[1:] = 0, 0
    short = replace(COUNTS[0], active={SITE: active}, tokens={SITE: tokens})
    with pytest.raises(ValueError, match=r"common has tokens in 1 bucket at llm\.mlp\.act; two parts need two"):
        stability([short, COUNTS[1]])
