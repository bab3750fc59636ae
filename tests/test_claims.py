"""Every claim by hand: data for which it holds, and for which it does not, cannot be decided, or cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy
import pytest
import torch

from mmneuron_lens.artifacts import digits
from mmneuron_lens.artifacts.answers import ALL, Answer
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.deviations import MEASURES, Deviations
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.reachability import UNREACHABLE
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.evaluation.ablation_claim import much_and_little
from mmneuron_lens.evaluation.claims import STATEMENTS, claims
from mmneuron_lens.evaluation.findings import Evidence, Finding, interval_of, verdict_of
from mmneuron_lens.evaluation.layer_claims import final_rise, image_above_text, image_confidence, middle_fall
from mmneuron_lens.evaluation.neuron_claims import (
    document_depth,
    largest_share,
    ranking_agreement,
    resampled_selections,
    silent_in_vision,
    turning_points,
)
from mmneuron_lens.evaluation.rankings import LEVEL, reversal
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.report import latex, page
from mmneuron_lens.report.claims_table import claims_table

LLM, VISION = "llm.mlp.act", "vision.mlp.act"
TWO = ("common", "document")


def selection_of(
    neurons: dict[str, Sequence[Sequence[int]]],
    domains: tuple[str, ...] = TWO,
    fraction: float = 0.01,
    width: int = 2000,
) -> Selection:
    """By site: for each layer so many neurons of each domain, no neuron of two; of `width` in every layer."""
    masks = {}
    for site, layers in neurons.items():
        mask = torch.zeros(len(layers), 2000, len(domains), dtype=torch.bool)
        for layer, numbers in enumerate(layers):
            start = 0
            for domain, number in enumerate(numbers):
                mask[layer, start : start + number, domain] = True
                start += number
        masks[site] = mask
    empty = {site: torch.zeros(mask.shape[:2], dtype=torch.float64) for site, mask in masks.items()}
    parameters = {"fraction": fraction, "percentile": 0.95, "kinds": {}}
    return Selection("<m>", domains, masks, empty, {}, {}, {}, {}, parameters)


def llm(*layers: int) -> Selection:
    return selection_of({LLM: [(number, 0) for number in layers]})


def told(finding: Finding) -> tuple[float | None, float | None, float | None, str]:
    return finding.value, finding.low, finding.high, finding.verdict


# Of 16 layers: the numbers are smoothed over an eighth, three layers, which moves no turning point of these.
RISE_FALL_RISE = (1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 4, 9)
TURNS = {
    "rise, fall, rise": (RISE_FALL_RISE, 2, "holds"),
    "fall, rise, fall": (tuple(9 - number for number in RISE_FALL_RISE), 2, "does not hold"),
    "both near the input": ((1, 5, 9, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), 2, "does not hold"),
    "both near the output": ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 2, 20), 2, "does not hold"),
    "fewest in the middle": ((1, 3, 9, 12, 9, 3, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9), 2, "does not hold"),
    "only rising": (tuple(range(16)), 0, "does not hold"),
    "only falling": (tuple(range(16, 0, -1)), 0, "does not hold"),
    "no layer has more": ((4,) * 16, 0, "does not hold"),
    "rise and fall": ((1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1, 0), 1, "does not hold"),
    "four turning points": ((1, 4, 7, 4, 1, 4, 7, 10, 13, 10, 7, 4, 1, 1, 5, 9), 4, "does not hold"),
}


@pytest.mark.parametrize("name", TURNS)
def test_1_two_turning_points_in_order_and_place(name):
    numbers, count, verdict = TURNS[name]
    selection = llm(*numbers)
    assert told(turning_points(Evidence(selection), [selection] * 3)) == (count, count, count, verdict)


def test_1_places_are_named_and_few_layers_have_them_too():
    selection = llm(*RISE_FALL_RISE)
    note = turning_points(Evidence(selection), [selection] * 3).note
    assert "Of layers 0 to 15: most at layer 7, fewest at layer 13." in note
    # Four layers have room for one place each.
    four = llm(1, 5, 2, 6)
    assert turning_points(Evidence(four), [four] * 3).verdict == "holds"
    other = llm(5, 1, 6, 2)
    assert turning_points(Evidence(other), [other] * 3).verdict == "does not hold"


def test_1_needs_agreement_of_the_resamples():
    three, other = llm(*RISE_FALL_RISE), llm(*(9 - number for number in RISE_FALL_RISE))
    for share, verdict in ((0, "holds"), (50, "not decided"), (100, "not decided")):
        drawn = [other] * share + [three] * (100 - share)
        assert turning_points(Evidence(three), drawn).verdict == verdict
    assert turning_points(Evidence(other), [three] * 100).verdict == "not decided"
    assert turning_points(Evidence(three), []).verdict == "not decided"
    assert turning_points(Evidence(selection_of({VISION: [(1, 1)]})), []).verdict == "not run"


DEPTHS = {
    # Four layers; mean layer of document, then of the other domain.
    "shallower": ([(0, 6), (2, 2), (2, 0), (4, 0)], 2 / 8 - (2 * 1 + 2 * 2 + 4 * 3) / 8, "holds"),
    "deeper": ([(6, 0), (2, 2), (0, 2), (0, 4)], (2 * 1 + 2 * 2 + 4 * 3) / 8 - 2 / 8, "does not hold"),
    "the same": ([(2, 2), (2, 2), (2, 2), (2, 2)], 0.0, "does not hold"),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_2_document_neurons_against_the_mean_layer_of_the_others(name):
    layers, value, verdict = DEPTHS[name]
    selection = selection_of({VISION: layers})
    assert told(document_depth(Evidence(selection), [selection] * 3)) == (value, value, value, verdict)


def test_2_is_not_decided_or_not_run():
    shallow, deep = (selection_of({VISION: DEPTHS[name][0]}) for name in ("shallower", "deeper"))
    finding = document_depth(Evidence(shallow), [deep] * 20 + [shallow] * 20)
    assert (finding.low, finding.high, finding.verdict) == (-2.0, 2.0, "not decided")
    others = {
        "no such domain": selection_of({VISION: [(1, 2), (3, 4)]}, domains=("photos", "scans")),
        "no such module": llm(1, 2, 3),
        "no document neuron": selection_of({VISION: [(1, 0), (2, 0)]}),
        "no other neuron": selection_of({VISION: [(0, 1), (0, 2)]}),
        "one layer": selection_of({VISION: [(3, 4)]}),
    }
    for name, selection in others.items():
        assert told(document_depth(Evidence(selection), [selection] * 3)) == (None, None, None, "not run"), name


def test_2_says_which_neurons_cannot_reach_the_logits():
    provenance = {UNREACHABLE: {VISION: {"layers": [1], "why": "w"}}}
    selection = replace(selection_of({VISION: DEPTHS["shallower"][0]}), provenance=provenance)
    note = document_depth(Evidence(selection), []).note
    assert note == "2 of the document neurons lie in layers that cannot reach the logits."


def test_3_cannot_fail_where_the_rule_selects_one_per_cent():
    selection = selection_of({VISION: [(9, 5)], LLM: [(8, 12)]})
    finding = largest_share(Evidence(selection), [selection] * 3)
    assert told(finding) == (100 * 12 / 2000, 100 * 12 / 2000, 100 * 12 / 2000, "cannot fail here")
    assert "The rule selects at most 1 % of each module, so no data could exceed it" in finding.note


@pytest.mark.parametrize(("most", "verdict"), [(19, "holds"), (20, "does not hold"), (80, "does not hold")])
def test_3_can_fail_where_the_rule_selects_more(most, verdict):
    selection = selection_of({VISION: [(9, 5)], LLM: [(8, most)]}, fraction=0.05)
    finding = largest_share(Evidence(selection), [selection] * 3)
    assert told(finding) == (most / 20, most / 20, most / 20, verdict)
    assert "no data" not in finding.note


def entropies_of(
    image: Sequence[float], text: Sequence[float], confidence: float = 0.3, domain: str = "common", spread: float = 0.0
) -> Entropies:
    """Every bucket has one token of each kind with these entropies by layer, every second one `spread` more for image.

    confidence: of the most likely next token of an image token, in every bucket.
    """
    entropy = torch.tensor([image, text], dtype=torch.float64).T.repeat(BUCKETS, 1, 1)
    entropy[::2, :, 0] += spread
    tokens = torch.ones(BUCKETS, 2, dtype=torch.int64)
    below = torch.full((BUCKETS, 2), int(confidence < 0.4))
    sums = torch.full((BUCKETS, 2), confidence, dtype=torch.float64)
    return Entropies("<m>", domain, ("image", "text"), entropy, sums, below, tokens)


def evidence_of(*entropies: Entropies) -> Evidence:
    return Evidence(llm(1, 2), entropies=entropies)


CURVES = {
    # image, text: 4a the smallest of image - text; 4b and 4c of their mean, which is (8, 5, 2, 3) in the first.
    "as in the paper": ((9, 6, 4, 4), (7, 4, 0, 2), 2, "holds", -6, "holds", 1, "holds"),
    "text above": ((7, 4, 0, 2), (9, 6, 4, 4), -4, "does not hold", -6, "holds", 1, "holds"),
    "text above once": ((9, 4, 4, 4), (7, 6, 0, 2), -2, "does not hold", -6, "holds", 1, "holds"),
    "rising": ((3, 5, 7, 9), (2, 4, 6, 8), 1, "holds", 2, "does not hold", 4, "holds"),
    "falling to the end": ((9, 7, 5, 3), (8, 6, 4, 2), 1, "holds", -4, "holds", -2, "does not hold"),
    "flat": ((4, 4, 4, 4), (4, 4, 4, 4), 0, "does not hold", 0, "does not hold", 0, "does not hold"),
}


@pytest.mark.parametrize("name", CURVES)
def test_4_entropy_by_hand(name):
    image, text, above, holds_above, fall, holds_fall, rise, holds_rise = CURVES[name]
    one = evidence_of(entropies_of(image, text), entropies_of(image, text, domain="medical"))
    for claim, value, verdict in (
        (image_above_text, above, holds_above), (middle_fall, fall, holds_fall), (final_rise, rise, holds_rise),
    ):  # fmt: skip
        assert told(claim(one, 20, 0)) == (value, value, value, verdict)


def test_4_is_a_mean_over_domains_and_names_the_layer():
    one = evidence_of(entropies_of((9, 6, 4, 4), (7, 4, 0, 2)), entropies_of((5, 2, 4, 4), (7, 4, 0, 2)))
    finding = image_above_text(one, 20, 0)
    assert (finding.value, finding.verdict) == (0, "does not hold")
    assert finding.note == "Smallest at the embedding; image tokens are above at 2 of 4 layers."
    once = evidence_of(entropies_of((9, 4, 4, 4), (7, 6, 0, 2)))
    assert image_above_text(once, 20, 0).note == "Smallest at layer 1; image tokens are above at 3 of 4 layers."


def test_4_counts_tokens_and_not_buckets():
    # Buckets of one token at 1 and of three at 5, for image tokens: 4 a token.
    one = entropies_of((1, 1, 1), (3, 3, 3))
    one.entropy[::2, :, 0], one.tokens[::2, 0] = 15, 3
    finding = image_above_text(evidence_of(one), 20, 0)
    assert finding.value == pytest.approx(1)


def test_4_is_not_decided_where_images_disagree():
    # Image tokens at -1 and +3 of the text tokens in turn: resampled means are of either sign at the ends.
    one = evidence_of(entropies_of((4, 4, 4), (5, 5, 5), spread=2.2))
    finding = image_above_text(one, 200, 0)
    assert finding.value == pytest.approx(0.1)
    assert finding.low is not None
    assert finding.high is not None
    assert finding.low < 0 < finding.high
    assert finding.verdict == "not decided"


def test_4_and_5_are_not_run_or_not_decided_where_nothing_can_be_said():
    empty, both = evidence_of(), entropies_of((4, 3, 4), (3, 2, 3))
    words = replace(both, tokens=both.tokens * torch.tensor([0, 1]), entropy=both.entropy * torch.tensor([0, 1]))
    tests = (image_above_text, middle_fall, final_rise, image_confidence)
    for test in tests:
        assert told(test(empty, 20, 0)) == (None, None, None, "not run")
        assert test(evidence_of(words), 20, 0).statistic == "no image tokens were read"
        # One bucket of images is one image, or a few: it cannot be resampled.
        single = torch.zeros(BUCKETS, 1, dtype=torch.int64)
        single[3] = 1
        one = replace(both, tokens=both.tokens * single, entropy=both.entropy * single[..., None])
        finding = test(evidence_of(one), 20, 0)
        assert (finding.low, finding.high, finding.verdict) == (None, None, "not decided")
    shallow = evidence_of(entropies_of((4, 3), (3, 2)))
    assert image_above_text(shallow, 20, 0).verdict == "holds"
    assert [test(shallow, 20, 0).verdict for test in (middle_fall, final_rise)] == ["not run"] * 2


@pytest.mark.parametrize(
    ("confidence", "verdict", "under"),
    [(0.3, "holds", "100 %"), (0.39, "holds", "100 %"), (0.5, "does not hold", "0 %")],
)
def test_5_mean_probability_of_the_most_likely_next_token(confidence, verdict, under):
    finding = image_confidence(evidence_of(entropies_of((4, 3, 4), (3, 2, 3), confidence)), 20, 0)
    assert told(finding) == (pytest.approx(100 * confidence),) * 3 + (verdict,)
    assert finding.note == f"{under} of image tokens are under 40 %."


def test_5_is_weighted_by_tokens_and_not_decided_near_40():
    near = entropies_of((4, 3, 4), (3, 2, 3), 0.4)
    near.confidence[::2, 0] += 0.3
    near.confidence[1::2, 0] -= 0.28
    finding = image_confidence(evidence_of(near), 200, 0)
    assert (finding.value, finding.verdict) == (pytest.approx(41), "not decided")
    # One domain with three tokens of 0.2 and one with a token of 0.6: 30 %, not 40 %.
    many = entropies_of((4, 3, 4), (3, 2, 3), 0.2)
    many = replace(many, tokens=3 * many.tokens, confidence=3 * many.confidence)
    finding = image_confidence(evidence_of(many, entropies_of((4, 3, 4), (3, 2, 3), 0.6)), 20, 0)
    assert (finding.value, finding.verdict) == (pytest.approx(30), "holds")


def switched_off(
    deviations: Sequence[float], before: Sequence[bool], after: Sequence[bool], domain: str = "medical"
) -> Evidence:
    """Questions of one domain, answered rightly or not with nothing off and with the domain's neurons off in all
    modules, and how far the last hidden state of each moves.
    """
    names = tuple(map(str, range(len(before))))
    conditions = (("None", "none", "", before), (ALL, "domain", domain, after))
    answers = [
        Answer("<m>", module, condition, of, domain, name, "?", ("yes",), "yes" if right else "no")
        for module, condition, of, some in conditions
        for name, right in zip(names, some, strict=True)
    ]
    values = torch.tensor([list(deviations), [0.01] * len(deviations)], dtype=torch.float64)
    moved = Deviations(
        "<m>", domain, ((ALL, "domain"), (ALL, "random 1")), names[: len(deviations)], dict.fromkeys(MEASURES, values)
    )
    return Evidence(llm(1, 2), answers=answers, deviations=[moved])


MOVED = {
    # Deviation of every question in per cent, right before, right after: value, change of accuracy in points, verdict.
    "much and little": (0.3, [True] * 8, [True] * 8, 30, 0, "holds"),
    "little and little": (0.04, [True] * 8, [True] * 8, 4, 0, "does not hold"),
    "much and all": (0.3, [True] * 8, [False] * 8, 30, 100, "does not hold"),
    "much, and accuracy rises as much": (0.3, [False] * 8, [True] * 8, 30, 100, "does not hold"),
    "much and uncertain": (0.3, [True] * 8, [True] * 6 + [False] * 2, 30, 25, "not decided"),
    "one question": (0.3, [True], [True], 30, 0, "not decided"),
}


@pytest.mark.parametrize("name", MOVED)
def test_6_the_state_moves_more_than_accuracy(name):
    deviation, before, after, value, change, verdict = MOVED[name]
    finding = much_and_little(switched_off([deviation] * len(before), before, after))
    assert (finding.value, finding.verdict) == (pytest.approx(value), verdict)
    ends = (None, None) if len(before) == 1 else (pytest.approx(value),) * 2
    assert (finding.low, finding.high) == ends
    assert f"Accuracy changes by {digits.number(float(change))} points." in finding.note
    assert "As many random neurons move the state by 1.00 %." in finding.note


def test_6_is_a_mean_over_domains_of_sizes():
    up, down = (
        switched_off([0.2] * 4, *both, domain)
        for domain, both in (
            ("medical", ([True] * 4, [True, True, True, False])),
            ("common", ([False] * 4, [False, False, False, True])),
        )
    )
    both = replace(up, answers=[*up.answers, *down.answers], deviations=[*up.deviations, *down.deviations])
    assert "Accuracy changes by 25.0 points." in much_and_little(both).note


def test_6_deviation_is_uncertain_too_and_absent_conditions_are_said():
    wide = switched_off([0.001, 0.2] * 4, [True] * 8, [True] * 8)
    finding = much_and_little(wide)
    assert finding.low is not None
    assert finding.high is not None
    assert finding.low < 5 < finding.value < finding.high  # type: ignore[operator]
    assert finding.verdict == "not decided"
    good = switched_off([0.3] * 8, [True] * 8, [True] * 8)
    missing = {
        "nothing was switched off": replace(good, answers=[], deviations=[]),
        "no deviation": replace(good, deviations=[]),
        "no answers with all modules off": replace(good, answers=good.answers[:8]),
        "another domain": replace(good, deviations=[replace(good.deviations[0], domain="common")]),
        "one module only": replace(good, deviations=[replace(good.deviations[0], conditions=(("LLM", "domain"),) * 2)]),
    }
    for name, one in missing.items():
        assert told(much_and_little(one)) == (None, None, None, "not run"), name


def modules(vision: Sequence[int], language: Sequence[int]) -> Selection:
    domains = DOMAINS[: len(vision)]
    return selection_of({VISION: [tuple(vision)], LLM: [tuple(language)]}, domains)


def noisy(selection: Selection, draws: int = 40) -> list[Selection]:
    """Numbers of neurons moved up and down by one, in turn: a standard deviation of about one each."""
    generator = numpy.random.default_rng(0)
    made = []
    for _ in range(draws):
        numbers = [mask.sum((0, 1)).numpy() + generator.integers(-1, 2, mask.shape[-1]) for mask in
                   selection.masks.values()]  # fmt: skip
        made.append(modules(*numbers))
    return made


def test_7_rankings_by_hand():
    same, other = modules((10, 20, 30), (40, 80, 120)), modules((10, 20, 30), (120, 80, 40))
    finding = ranking_agreement(Evidence(same), noisy(same))
    assert (finding.value, finding.verdict) == (1.0, "does not hold")
    assert "Most neurons: Vision Encoder, medical; LLM, medical." in finding.note
    finding = ranking_agreement(Evidence(other), noisy(other))
    assert (finding.value, finding.verdict) == (-1.0, "holds")
    assert "common stands above medical in LLM and below it in Vision Encoder." in finding.note
    # Tau is below 1, and yet nothing but noise tells the two apart.
    close = modules((10, 20, 21), (40, 81, 80))
    finding = ranking_agreement(Evidence(close), noisy(close))
    assert (finding.value, finding.verdict) == (pytest.approx(1 / 3), "not decided")
    assert "by more than noise could" in finding.note
    # Opposite rankings of which every resample has a tau below 1, each step of them within the noise.
    flat = modules((10, 11, 12, 11, 10), (41, 40, 39, 40, 41))
    finding = ranking_agreement(Evidence(flat), noisy(flat))
    assert finding.high is not None
    assert (finding.value, finding.high < 1, finding.verdict) == (pytest.approx(-1), True, "not decided")
    for drawn in ([], noisy(other)[:1]):
        assert ranking_agreement(Evidence(other), drawn).verdict == "not decided"
    for nothing in (llm(1, 2, 3), modules((5, 5), (3, 3))):
        assert told(ranking_agreement(Evidence(nothing), [nothing] * 3)) == (None, None, None, "not run")


RANKED = {
    # Modules of one true ranking, among them the hardest: one clear, the others without any.
    "one ranking": ([[10, 20, 30, 40, 50], [100, 110, 130, 200, 400], [5, 6, 7, 8, 9]], 0, LEVEL),
    "no difference at all": ([[30] * 5] * 3, 0, LEVEL),
    "one clear module": ([[10, 100, 300, 600, 900], [30] * 5, [30] * 5], 0, 2 * LEVEL),
    "the paper's LLaVA-NeXT": ([[65, 233, 168, 409, 465], [8, 13, 13, 11, 20], [683, 915, 1536, 423, 2120]], 0.95, 1),
}


@pytest.mark.parametrize("name", RANKED)
def test_7_modules_of_one_ranking_seldom_differ_and_the_papers_do(name):
    """The null hypothesis and the power, on Poisson numbers with a bootstrap that is Poisson about them."""
    means, least, most = RANKED[name]
    generator = numpy.random.default_rng(1)
    said = []
    for _ in range(200):
        numbers = generator.poisson(means).astype(float)
        drawn = generator.poisson(numbers, (50, *numbers.shape)).astype(float)
        said.append(reversal(numbers, drawn).differ)
    assert least <= said.count(True) / 200 <= most


def silent_counts(tokens: int, active: dict[int, list[int]], neurons: int = 10, dead: Sequence[int] = ()) -> Counts:
    """Vision neurons of one layer: which buckets each is active in, once; those not named never."""
    site = torch.zeros(BUCKETS, 2, 1, neurons, dtype=torch.int64)
    site[:, 1] = 1
    for neuron, buckets in active.items():
        site[buckets, 0, 0, neuron] = 1
    facts = {UNREACHABLE: {VISION: {"layers": list(dead), "why": "w"}} if dead else {}}
    everywhere = torch.full((BUCKETS, 1), tokens)
    return Counts("<m>", "common", {VISION: site}, {VISION: everywhere}, {VISION: ("image",)}, 5, facts)


def test_8_silent_neurons_by_hand():
    always = list(range(BUCKETS))
    three = silent_counts(100, dict.fromkeys(range(7), always))
    finding = silent_in_vision(Evidence(llm(1), [three, three]), 50, 0)
    assert told(finding) == (3, 3, 3, "holds")
    assert finding.note == "Of 20 neurons, over 3,200 tokens: each is active on fewer than 938 tokens in a million."
    none = silent_counts(100, dict.fromkeys(range(10), always))
    assert told(silent_in_vision(Evidence(llm(1), [none]), 50, 0)) == (0, 0, 0, "does not hold")
    # Silent in one domain is not silent.
    assert silent_in_vision(Evidence(llm(1), [three, none]), 50, 0).value == 0
    # One of ten silent, the others active in one bucket each: as many could have been missed.
    rare = silent_counts(100, {neuron: [neuron] for neuron in range(9)})
    finding = silent_in_vision(Evidence(llm(1), [rare]), 200, 0)
    assert told(finding) == (1, 0, 1, "not decided")
    # What another domain wakes in every bucket is not in doubt.
    awake = silent_counts(100, dict.fromkeys(range(9), always))
    assert told(silent_in_vision(Evidence(llm(1), [awake, rare]), 200, 0)) == (1, 1, 1, "holds")
    assert told(silent_in_vision(Evidence(llm(1)), 50, 0)) == (None, None, None, "not run")
    assert silent_in_vision(Evidence(llm(1), [three]), 0, 0).verdict == "not decided"
    dead = silent_counts(100, dict.fromkeys(range(7), always), dead=[0])
    note = silent_in_vision(Evidence(llm(1), [dead]), 50, 0).note
    assert note.endswith("3 of the silent neurons lie in layers that cannot reach the logits.")


def test_intervals_and_the_rule_of_verdicts():
    assert interval_of([float(number) for number in range(1, 101)]) == (3, 98)
    assert interval_of([1.0, float("nan"), 1.0]) == (1, 1)
    assert interval_of([1.0]) == interval_of([]) == (None, None)

    def positive(number: float) -> bool:
        return number > 0

    assert verdict_of(2, 1, 3, positive) == "holds"
    assert verdict_of(-2, -3, -1, positive) == "does not hold"
    for value, low, high in ((1, -1, 3), (-1, -3, 1), (-1, 1, 2), (1, -2, -1), (1, 0, 2)):
        assert verdict_of(value, low, high, positive) == "not decided"
    assert verdict_of(2, None, None, positive) == "not decided"


def counts_of(domain: str, seed: int, filled: int = BUCKETS) -> Counts:
    generator = torch.Generator().manual_seed(seed)
    active, tokens = {}, {}
    for site, layers in ((LLM, 4), (VISION, 3)):
        tokens[site] = torch.zeros(BUCKETS, 1, dtype=torch.int64)
        tokens[site][:filled] = 40
        rate = torch.rand(1, layers, 1, 300, generator=generator)
        active[site] = torch.binomial(tokens[site][:, None, :, None].float().expand(-1, layers, -1, 300),
                                      rate.expand(BUCKETS, -1, -1, -1), generator=generator).long()  # fmt: skip
    return Counts("<m>", domain, active, tokens, {site: ("image",) for site in active}, 9, {})


def test_resamples_are_the_selection_again_on_redrawn_buckets():
    counts = [counts_of(domain, seed) for seed, domain in enumerate(TWO)]
    selection = select(counts, 0.05)
    drawn = resampled_selections(Evidence(selection, counts), 3, 5)
    generator = torch.Generator().manual_seed(5)
    for some in drawn:
        redrawn = []
        for one in counts:
            places = torch.randint(0, BUCKETS, (BUCKETS,), generator=generator)
            active = {site: value[places] for site, value in one.active.items()}
            redrawn.append(
                replace(one, active=active, tokens={site: value[places] for site, value in one.tokens.items()})
            )
        again = select(redrawn, 0.05)
        for site, mask in again.masks.items():
            assert torch.equal(some.masks[site], mask)
    assert resampled_selections(Evidence(selection), 3, 5) == []
    # Tokens in one bucket of sixteen: every resample would be the same.
    few = [counts_of(domain, seed, filled=1) for seed, domain in enumerate(TWO)]
    assert resampled_selections(Evidence(select(few, 0.05), few), 3, 5) == []
    found = claims([Evidence(select(few, 0.05), few)], resamples=5)
    assert {finding.verdict for claim in found for finding in claim.findings} == {"not decided", "not run"}


def test_the_sheet_gives_each_statement_its_own_test():
    """The evidence of every claim above that holds, at once: ten statements, ten findings of their own."""
    domains = ("common", "document")
    neurons = {LLM: [(number, 0) for number in RISE_FALL_RISE], VISION: [(0, 6), (2, 0), (2, 0), (4, 0)]}
    selection = selection_of(neurons, domains, fraction=0.01)
    off = switched_off([0.3] * 8, [True] * 8, [True] * 8, "common")
    read = entropies_of((9, 6, 4, 4), (7, 4, 0, 2))
    counts = [counts_of(domain, seed) for seed, domain in enumerate(domains)]
    one = replace(off, selection=selection, entropies=[read])
    found = {claim.number: claim.findings[0] for claim in claims([one], resamples=20)}
    assert [number for number, _ in STATEMENTS] == ["1", "2", "3", "4a", "4b", "4c", "5", "6", "7", "8"]
    assert list(found) == [number for number, _ in STATEMENTS]
    values = {number: finding.value for number, finding in found.items()}
    assert values == {
        **{"1": 2, "2": pytest.approx(0 - (2 * 1 + 2 * 2 + 4 * 3) / 8), "3": pytest.approx(100 * 76 / 32000)},
        **{"4a": 2, "4b": -6, "4c": 1, "5": pytest.approx(30), "6": pytest.approx(30)},
        **{"7": pytest.approx(1.0), "8": None},
    }
    assert [found[number].verdict for number in ("4a", "4b", "4c", "5", "6")] == ["holds"] * 5
    assert (found["3"].verdict, found["8"].verdict) == ("cannot fail here", "not run")
    assert silent_in_vision(replace(one, counts=counts), 5, 0).verdict == "does not hold"


def test_a_verdict_that_cannot_fail_is_shown_wherever_verdicts_are(tmp_path):
    selection = selection_of({VISION: [(9, 5)]})
    found = claims([Evidence(selection)], resamples=2)
    frame = claims_table(found)
    assert frame.filter(frame["claim"] == "3")["verdict"].to_list() == ["cannot fail here"]
    shown = page.Page("t", "l", (), (), claims=found)
    html = page.write(shown, tmp_path).read_text()
    assert '<span class="verdict cannot-fail-here">cannot fail here</span>' in html
    assert ".verdict.cannot-fail-here" in html
    assert "cannot fail here" in (tmp_path / "tables" / "claims.csv").read_text()
    assert "cannot fail here" in (tmp_path / "tables" / "claims.tex").read_text()
    assert "cannot fail here" in latex.latex(frame, "c")
