"""MANU, MINER and margin equal their formulas written in loops, and say something sensible where there is little."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from interventions.errors import InvalidValue, UnknownName
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.experiments.moments import counts_from
from mmneuron_lens.neurons.activity import activity
from mmneuron_lens.neurons.observed import Observed, observed
from mmneuron_lens.neurons.selectors.registry import SELECTORS, selector_named

LLM, POST, VISION = "llm.mlp.act", "llm.mlp.post", "vision.mlp.act"
KINDS = {LLM: ("image", "text"), POST: ("image", "text"), VISION: ("cls", "patch")}
SIZES = {LLM: (2, 4), POST: (2, 4), VISION: (1, 3)}
"""Layers and neurons."""

Tokens = dict[str, list[list[np.ndarray]]]
"""By site, bucket and kind, the values of all tokens: [token, layer, neuron]."""


def drawn_tokens(seed: int) -> Tokens:
    """A few tokens in a few buckets; now and then constant neurons, a kind without tokens, or a domain without any."""
    draw = np.random.default_rng(seed)
    buckets, found = draw.choice(BUCKETS, 3, replace=False), {}
    counts = {group: draw.integers(0, 4, (BUCKETS, 2)) for group in ("llm", "vision")}
    for some in counts.values():
        some[[bucket for bucket in range(BUCKETS) if bucket not in buckets]] = 0
        some[:, draw.integers(2)] *= draw.random() > 0.1
    for site, size in SIZES.items():
        # Sums of quarters are exact, so that the variance of a constant is 0 in any order.
        shift = np.round(4 * draw.normal(size=size)) / 4
        scale = draw.choice([0.0, 1.0, 2.0], size)
        number = counts[site.partition(".")[0]]
        found[site] = [
            [shift + scale * draw.normal(size=(number[bucket, kind], *size)) for kind in range(2)]
            for bucket in range(BUCKETS)
        ]
    return found


def moments_of(tokens: Tokens, domain: str) -> Moments:
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for site, buckets in tokens.items():

        def each(function: Any, absent: float = 0.0, buckets: Any = buckets, site: str = site) -> torch.Tensor:
            made = np.full((BUCKETS, SIZES[site][0], 2, SIZES[site][1]), absent)
            for bucket, kinds in enumerate(buckets):
                for kind, values in enumerate(kinds):
                    if len(values):
                        made[bucket, :, kind] = function(values)
            return torch.from_numpy(made)

        found = {
            "tokens": torch.tensor([[len(values) for values in kinds] for kinds in buckets]),
            "positive": each(lambda values: (values > 0).sum(0)).long(),
            "above": each(lambda values: (values > 0.1).sum(0)).long(),
            "sums": each(lambda values: values.sum(0)),
            "squares": each(lambda values: (values**2).sum(0)),
            "maximum": each(lambda values: values.max(0), math.nan).float(),
        }
        for name, value in found.items():
            by_name.setdefault(name, {})[site] = value
    return Moments("m", domain, kinds=KINDS, samples=1, **by_name)


def observed_of(tokens: list[Tokens]) -> Observed:
    moments = [moments_of(some, f"d{number}") for number, some in enumerate(tokens)]
    for one in moments:
        one.check()
    return observed([counts_from(one) for one in moments], moments)


def values_of(tokens: Tokens, site: str, layer: int, neuron: int, kinds: tuple[int, ...] = (0, 1)) -> list[float]:
    """Every token's value of a neuron in a domain."""
    return [float(one[layer, neuron]) for bucket in tokens[site] for kind in kinds for one in bucket[kind]]


def mean(some: list[float]) -> float:
    return sum(some) / len(some)


def by_margin(tokens: list[Tokens], site: str, layer: int, neuron: int) -> list[float]:
    domains = [values_of(some, site, layer, neuron) for some in tokens]
    filled = [some for some in domains if some]
    deviation = math.sqrt(sum(sum((x - mean(some)) ** 2 for x in some) for some in filled) / sum(map(len, filled)))
    scores = []
    for number, some in enumerate(domains):
        others = [mean(other) for place, other in enumerate(domains) if place != number and other]
        scores.append((mean(some) - max(others)) / (deviation + 1e-6) if some and others else -math.inf)
    return scores


def manu_importance(multi: list[float], text: list[float]) -> float:
    def side(some: list[float]) -> tuple[float, float, float, float]:
        if not some:
            return 0.0, 0.0, 0.0, 0.0
        centre = mean(some)
        return (
            centre,
            mean([float(x > 0.1) for x in some]),
            mean([(x - centre) ** 2 for x in some]),
            mean([x * x for x in some]),
        )

    (zm, nm, vm, sm), (zt, nt, vt, st) = side(multi), side(text)
    absolute = abs(zm - zt) / (abs(zm) + abs(zt) + 1e-6)
    frequency = abs(nm - nt) / (nm + nt + 1e-6)
    return absolute + frequency + math.sqrt(vm + vt) + math.sqrt(abs(sm - st) / (sm + st + 1e-6))


def by_manu(tokens: list[Tokens], site: str, layer: int, neuron: int) -> list[float]:
    image, text = ((0,), (1,)) if site.startswith("llm") else ((0, 1), ())
    sides = [
        (values_of(some, site, layer, neuron, image), values_of(some, site, layer, neuron, text)) for some in tokens
    ]
    scores = []
    for number, (multi, words) in enumerate(sides):
        rest = [pair for place, pair in enumerate(sides) if place != number]
        against = manu_importance([x for one, _ in rest for x in one], [x for _, one in rest for x in one])
        scores.append(manu_importance(multi, words) / (against + 1e-6) if multi or words else -math.inf)
    return scores


def by_miner(tokens: list[Tokens], site: str, layer: int, neuron: int) -> list[float]:
    def scaled(values: list[float]) -> float:
        least, most = min(values), max(values)
        return (values[neuron] - least) / (most - least) if most > least else 0.0

    scores = []
    for some in tokens:
        by_kind = []
        for kind in (0, 1):
            own = []
            for bucket in some[site]:
                if len(bucket[kind]):
                    held = bucket[kind][:, layer]
                    means = scaled([mean(column) for column in held.T.tolist()])
                    maxima = scaled([float(np.float32(max(column))) for column in held.T.tolist()])
                    own.append(0.5 * means + 0.5 * maxima)
            if own:
                by_kind.append(mean(own))
        scores.append(mean(by_kind) if by_kind else -math.inf)
    return scores


@pytest.mark.parametrize(("name", "written", "read"), [
    ("margin", by_margin, {LLM: POST, VISION: VISION}),
    ("manu", by_manu, {LLM: POST, VISION: VISION}),
    ("miner", by_miner, {LLM: LLM, VISION: VISION}),
])  # fmt: skip
def test_scores_equal_the_formula_written_in_loops(name, written, read):
    absent = 0
    for seed in range(200):
        tokens = [drawn_tokens(10 * seed + domain) for domain in range(3)]
        scores = selector_named(name).scores(observed_of(tokens))
        assert set(scores) == {LLM, VISION}
        for site, found in scores.items():
            layers, neurons = SIZES[site]
            expected = [[written(tokens, read[site], layer, neuron) for neuron in range(neurons)]
                        for layer in range(layers)]  # fmt: skip
            wanted = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
            absent += int((wanted == -torch.inf).sum())
            if name == "margin" and found.isfinite().all():
                assert ((found > 0).sum(-1) <= 1).all()
    assert absent


def test_margin_of_a_neuron_that_is_constant_in_each_domain():
    tokens = [drawn_tokens(3) for _ in range(2)]
    for number, some in enumerate(tokens):
        for site, size in SIZES.items():
            some[site] = [[np.full((2, *size), 0.25 * number)] * 2 for _ in range(BUCKETS)]
    scores = selector_named("margin").scores(observed_of(tokens))
    assert scores[LLM][0, 0].tolist() == pytest.approx([-0.25e6, 0.25e6])
    manu = selector_named("manu").scores(observed_of(tokens))
    # Image and text are the same: nothing of a language model's neuron differs.
    assert manu[LLM].abs().max() == 0
    assert (selector_named("miner").scores(observed_of(tokens))[LLM] == 0).all()


def test_one_domain_and_wrong_settings_are_refused():
    tokens = [drawn_tokens(1), drawn_tokens(2)]
    for name in ("margin", "manu"):
        with pytest.raises(InvalidValue, match="moments are of 1 domain"):
            selector_named(name).scores(observed_of(tokens[:1]))
    both = observed_of(tokens)
    with pytest.raises(InvalidValue, match="manu needs moments"):
        selector_named("manu").scores(Observed(both.counts))
    with pytest.raises(InvalidValue, match=r"weights 0, -1 and 0\.25"):
        selector_named("miner").scores(both, mean=-1.0)
    with pytest.raises(InvalidValue, match=r"value is 'gate'; choose from act, post"):
        selector_named("manu").scores(both, value="gate")
    with pytest.raises(UnknownName, match="parameter of margin"):
        selector_named("margin").scores(both, alpha=1)
    other = moments_of(tokens[1], "d1")
    names = ("positive", "above", "sums", "squares", "maximum")
    half = {name: {**getattr(other, name), POST: getattr(other, name)[POST][..., :2]} for name in names}
    changed = Moments("m", "d1", tokens=other.tokens, kinds=KINDS, samples=1, **half)
    with pytest.raises(InvalidValue, match=r"moments at llm\.mlp\.post are of 2 forms"):
        selector_named("manu").scores(Observed(both.counts, (both.moments[0], changed)))


def test_each_says_where_it_is_from_and_which_value_it_reads():
    for name, value in (("manu", "post"), ("miner", "act"), ("margin", "post")):
        assert SELECTORS[name].defaults["value"] == value
        assert "arXiv" in SELECTORS[name].source


def test_activity_is_the_mean_and_the_largest_of_every_token():
    tokens = [drawn_tokens(seed) for seed in (4, 25, 31)]
    moments = observed_of(tokens).moments
    for site in (LLM, VISION):
        found = activity(moments, site)
        assert list(found) == ["mean_act", "max_act", "mean_post", "max_post"]
        for value in ("act", "post"):
            read = POST if (site, value) == (LLM, "post") else site
            for domain, some in enumerate(tokens):
                for layer in range(SIZES[site][0]):
                    for neuron in range(SIZES[site][1]):
                        own = values_of(some, read, layer, neuron)
                        wanted = [mean(own), max(own)] if own else [math.nan, math.nan]
                        here = [float(found[f"{what}_{value}"][layer, neuron, domain]) for what in ("mean", "max")]
                        assert here == pytest.approx(wanted, rel=1e-6, nan_ok=True)
