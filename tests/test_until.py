"""Counting until it is enough: the rule against data whose overlap is known, and the run against its parts by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import files_of, write_corpus
from typer.testing import CliRunner

import mmneuron_lens as mm
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import BUCKETS, LEFT_OUT, Counts, bucket_of
from mmneuron_lens.artifacts.counts_sum import counts_together
from mmneuron_lens.cli import app
from mmneuron_lens.corpora.content import image_digest
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.neurons import enough as rule_of_enough
from mmneuron_lens.neurons.enough import EnoughRule, OverlapInterval, is_enough, overlaps, rounds
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.keys import StoreConflict
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runs.until import count_until, enough_line, shuffled

SITE = "llm.mlp.act"
NEURONS = 600
RULE = EnoughRule(0.7, fraction=0.05, percentile=0.9)


def drawn(domain: str, tokens: int, seed: int) -> Counts:
    """So many tokens a bucket; a neuron's probability in a domain is its own, so that every overlap is possible."""
    own = torch.Generator().manual_seed(len(domain))
    probability = torch.rand(NEURONS, generator=own, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1000 * len(domain) + seed)
    # A bucket's images are alike: its own probabilities spread around the domain's.
    spread = torch.randn(BUCKETS, NEURONS, generator=generator, dtype=torch.float64) / 40
    active = torch.binomial(torch.full_like(spread, tokens), (probability + spread).clamp(0, 1), generator=generator)
    shaped = active.long().view(BUCKETS, 1, 1, NEURONS)
    return Counts("m", domain, {SITE: shaped}, {SITE: torch.full((BUCKETS, 1), tokens)}, {SITE: ("text",)}, 9, {})


def domains(tokens: int, seed: int) -> list[Counts]:
    return [drawn(name, tokens, seed) for name in ("common", "medical", "document")]


def measured(tokens: int, seed: int = 0) -> OverlapInterval:
    found = overlaps(domains(tokens, seed), RULE)["medical"]
    assert found is not None
    return found


def true_overlap(tokens: int, pairs: int = 20) -> float:
    """The mean overlap of the medical neurons of two data sets of half of the tokens that share nothing."""
    made = []
    for pair in range(pairs):
        sets = []
        for half in (2 * pair, 2 * pair + 1):
            counts = [_first_half(one) for one in domains(tokens, 10_000 + half)]
            selection = select(counts, RULE.fraction, RULE.percentile)
            mask = selection.masks[SITE][..., selection.domains.index("medical")]
            sets.append({tuple(place) for place in mask.nonzero().tolist()})
        made.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    return statistics.fmean(made)


def _first_half(counts: Counts) -> Counts:
    active, tokens = counts.active[SITE].clone(), counts.tokens[SITE].clone()
    active[BUCKETS // 2 :], tokens[BUCKETS // 2 :] = 0, 0
    return replace(counts, active={SITE: active}, tokens={SITE: tokens})


# --- the rule ---


@pytest.fixture(scope="module")
def looks() -> list[OverlapInterval]:
    """At data sets that share nothing, of one kind."""
    return [measured(20, seed) for seed in range(10)]


@pytest.fixture(scope="module")
def true() -> float:
    return true_overlap(20)


def test_the_interval_holds_the_true_overlap(looks: list[OverlapInterval], true: float) -> None:
    # Of 95 % intervals, 8 or fewer of 10 hold what is true once in 90 times.
    assert sum(one.low <= true <= one.high for one in looks) >= 9, (true, looks)
    means = [one.mean for one in looks]
    assert abs(statistics.fmean(means) - true) < 0.04
    # 95 % are 3.9 standard deviations wide; the jackknife's variance is too large rather than too small.
    width = statistics.fmean(one.high - one.low for one in looks)
    assert 3.9 < width / statistics.stdev(means) < 3.9 * 4


def test_more_tokens_give_higher_overlaps() -> None:
    found = [measured(tokens) for tokens in (5, 20, 80)]
    assert [one.mean for one in found] == sorted(one.mean for one in found)
    assert [one.low for one in found] == sorted(one.low for one in found)
    assert found[0].mean < found[-1].low


def test_a_lucky_look_does_not_stop(looks: list[OverlapInterval], true: float) -> None:
    """At a domain whose true overlap is just below what is wanted: some single means reach it, the rule never does."""
    wanted = true + 0.01
    assert any(one.mean >= wanted for one in looks)
    assert not any(is_enough(looks[:count], wanted) for count in range(1, 11))
    certain, lucky = OverlapInterval(0.95, 0.91, 0.99), OverlapInterval(0.95, 0.89, 1.0)
    assert not is_enough([certain], 0.9)
    assert not is_enough([certain, lucky], 0.9)
    assert not is_enough([certain, lucky, certain], 0.9)
    assert not is_enough([certain, None, certain], 0.9)
    assert not is_enough([certain, certain, None], 0.9)
    assert is_enough([lucky, certain, certain], 0.9)


def test_overlaps_equal_a_second_writing_with_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_of_enough, "SPLITS", 3)
    counts = [drawn("common", 30, 0), drawn("medical", 30, 0)]
    tokens, active = counts[1].tokens[SITE].clone(), counts[1].active[SITE].clone()
    tokens[[2, 5]], active[[2, 5]] = 0, 0
    counts[1] = replace(counts[1], active={SITE: active}, tokens={SITE: tokens})
    generator = torch.Generator().manual_seed(RULE.seed)
    filled = [[*range(16)], [bucket for bucket in range(16) if bucket not in (2, 5)]]
    deals = []
    for _ in range(rule_of_enough.SPLITS):
        orders = [torch.randperm(len(own), generator=generator).tolist() for own in filled]
        firsts = [{own[place] for place in order[: len(own) // 2]} for own, order in zip(filled, orders, strict=True)]
        deals.append([(first, {*own} - first) for first, own in zip(firsts, filled, strict=True)])

    def index(deal: list[tuple[set[int], set[int]]], without: int | None, domain: int) -> float:
        sets = []
        for half in (0, 1):
            parts = []
            for one, halves in zip(counts, deal, strict=True):
                out = [bucket for bucket in range(16) if bucket not in halves[half] - {without}]
                active, tokens = one.active[SITE].clone(), one.tokens[SITE].clone()
                active[out], tokens[out] = 0, 0
                parts.append(replace(one, active={SITE: active}, tokens={SITE: tokens}))
            mask = select(parts, RULE.fraction, RULE.percentile).masks[SITE][..., domain]
            sets.append({tuple(place) for place in mask.nonzero().tolist()})
        return len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    found = overlaps(counts, RULE)["medical"]
    own = [index(deal, None, 1) for deal in deals]
    left = [statistics.fmean(index(deal, bucket, 1) for deal in deals) for bucket in range(16)]
    buckets = 15 / 16 * sum((one - statistics.fmean(left)) ** 2 for one in left)
    reach = 1.96 * math.sqrt(buckets + statistics.variance(own) / len(own))
    assert found is not None
    assert (found.mean, found.mean - found.low) == (pytest.approx(statistics.fmean(own)), pytest.approx(reach))


def test_too_few_buckets_say_nothing() -> None:
    active, tokens = drawn("common", 30, 0).active[SITE].clone(), torch.full((BUCKETS, 1), 30)
    active[3:], tokens[3:] = 0, 0
    few = replace(drawn("common", 30, 0), active={SITE: active}, tokens={SITE: tokens})
    assert overlaps([few, drawn("medical", 30, 0)], RULE) == {"common": None, "medical": None}


def test_rounds_grow_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_of_enough, "LEAST_IMAGES", 32)
    found = rounds({"common": 1000, "medical": 100})
    assert found[0] == {"common": 320, "medical": 32}
    assert found[-1] == {"common": 1000, "medical": 100}
    pairs = [(one["medical"], two["medical"]) for one, two in pairwise(found)]
    assert all(one < two <= 1.3 * one + 1 for one, two in pairs)
    assert rounds({"common": 9, "medical": 5}) == [{"common": 9, "medical": 5}]
    assert rounds({"common": 32_000, "medical": 64_000})[0] == {"common": 1000, "medical": 2000}


# --- the run ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> mm.Corpus:
    """Of the first domain, one image can be measured but not decoded."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), images=16)
    damaged = folder / "images" / "common2.png"
    damaged.write_bytes(damaged.read_bytes()[:-500])
    return mm.load_corpus(folder)


@pytest.fixture(scope="module")
def lens(small: None) -> mm.Lens:
    return tiny_lens("llava")


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The first round of 16 images is 8, as few deals as there can be."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rule_of_enough, "LEAST_IMAGES", 8)
        patched.setattr(rule_of_enough, "SPLITS", 2)
        yield


PLANNED: dict[str, Any] = {"batch_size": 1, "exact": True, "corpus": "mine"}
"""Of one question a step, the counts are the same bits in whatever order the questions come."""


def counted(lens: mm.Lens, corpus: mm.Corpus, out: Path | None, until: float = 0.2, **more: Any) -> dict[str, Counts]:
    rule = EnoughRule(until, fraction=0.6, percentile=0.3)
    given = {"problems": corpus.problems, **PLANNED, **more}
    return count_until(lens, corpus.by_domain(), Store(out), rule=rule, **given)


def told(counts: Counts) -> dict[str, Any]:
    return counts.provenance["corpus"]["counted"]


@pytest.fixture(scope="module")
def whole(lens: mm.Lens, corpus: mm.Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Counts]]:
    """A run that was left alone, and its counts."""
    run = tmp_path_factory.mktemp("whole")
    return run, counted(lens, corpus, run)


def test_the_run_equals_counting_that_part_by_hand(
    lens: mm.Lens, corpus: mm.Corpus, whole: tuple[Path, dict[str, Counts]]
) -> None:
    run, found = whole
    for domain, counts in found.items():
        # The second look of four: 8, 11, 14 and 16 of 16 images.
        assert {name: told(counts)[name] for name in ("images", "of images", "looks", "enough")} == {
            "images": 11, "of images": 16, "looks": 2, "enough": True,
        }  # fmt: skip
        images = shuffled(corpus.by_domain()[domain])[:11]
        samples = [sample for image in images for sample in image]
        by_hand = count_domain(lens, samples, problems=corpus.problems, **PLANNED)
        assert all(torch.equal(counts.active[site], by_hand.active[site]) for site in by_hand.active)
        assert all(torch.equal(counts.tokens[site], by_hand.tokens[site]) for site in by_hand.tokens)
        assert (counts.samples, counts.provenance[LEFT_OUT]) == (by_hand.samples, by_hand.provenance[LEFT_OUT])
        assert (told(counts)["questions"], told(counts)["tokens"]) == (22, int(by_hand.tokens[SITE].sum()))
        written = Counts.load(file_of(run, "counts", lens.name, domain))
        assert written.provenance == counts.provenance
        low, mean = told(counts)["overlap"][1], told(counts)["overlap"][0]
        assert 0.2 <= low <= mean
        line = (
            f"{domain}: enough after {told(counts)['tokens']:,} tokens of 20,000,000 (the paper's), 22 of 32 questions"
        )
        assert enough_line(counts).startswith(line)
    assert {name.split("/")[0] for name in files_of(run)} == {"counts"}
    assert select([*found.values()]).domains == ("common", "medical")


def test_the_order_is_that_of_the_images_alone(corpus: mm.Corpus) -> None:
    samples = corpus.by_domain()["medical"]
    order = [image[0].images for image in shuffled(samples)]
    assert [image[0].images for image in shuffled(samples[::-1])] == order != sorted(order)
    assert len({bucket_of(image_digest(images[0])) for images in order[:8]}) >= 4
    assert [image[0].images for image in shuffled(samples, 1)] != order


def test_never_reached_counts_all_and_says_so(lens: mm.Lens, corpus: mm.Corpus, tmp_path: Path) -> None:
    found = counted(lens, corpus, tmp_path, until=1.0)
    for domain, counts in found.items():
        everything = count_domain(lens, corpus.by_domain()[domain], problems=corpus.problems, **PLANNED)
        assert all(torch.equal(counts.active[site], everything.active[site]) for site in everything.active)
        assert (told(counts)["enough"], told(counts)["images"]) == (False, 16)
        assert "all was counted and 1 not reached: " in enough_line(counts)
        assert ", 32 of 32 questions, overlap 0." in enough_line(counts)
        assert enough_line(everything) == ""
    with pytest.raises(StoreConflict, match=r"corpus until overlap is 1.0 there and 0.2 here"):
        counted(lens, corpus, tmp_path)
    with pytest.raises(StoreConflict, match=r"corpus until is .* there and absent here"):
        mm.identify(lens, corpus, out=tmp_path, batch_size=1, exact=True)


class Killed(Exception):
    """What ends a count after so many steps."""


def killed_after(steps: int) -> Any:
    left = [steps]

    def progress(items: Any, title: str) -> Iterator[Any]:
        for one in items:
            if not left[0]:
                raise Killed
            left[0] -= 1
            yield one

    return progress


def test_a_killed_count_goes_on_and_ends_with_the_same_bytes(
    lens: mm.Lens,
    corpus: mm.Corpus,
    whole: tuple[Path, dict[str, Counts]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, moments, steps = tmp_path / "killed", (1, 20, 17), list[int]()
    for moment in moments:
        with pytest.raises(Killed):
            counted(lens, corpus, run, progress=killed_after(moment))
        assert not list(run.glob("counts/*/*.safetensors"))
    counted(lens, corpus, run, progress=lambda items, title: steps.append(len(items)) or items)
    # No question is asked twice.
    assert sum(steps) == 44 - sum(moments)
    assert files_of(run) == files_of(whole[0])

    # Killed while the finished counts are written: those that are there stay, and the rounds are not counted again.
    saved = Counts.save

    def save(self: Counts, path: Any, key: Any = None) -> None:
        if "counts/" in str(path) and "medical" in str(path):
            raise Killed
        saved(self, path, key)

    with monkeypatch.context() as patched:
        patched.setattr(Counts, "save", save)
        with pytest.raises(Killed):
            counted(lens, corpus, tmp_path / "late")
    steps.clear()
    counted(lens, corpus, tmp_path / "late", progress=lambda items, title: steps.append(len(items)) or items)
    assert (sum(steps), files_of(tmp_path / "late")) == (0, files_of(whole[0]))


def test_identify_takes_it(lens: mm.Lens, corpus: mm.Corpus, whole: tuple[Path, dict[str, Counts]]) -> None:
    given = {"fraction": 0.6, "percentile": 0.3, "batch_size": 1, "exact": True}
    found = mm.identify(lens, corpus, until=0.2, permutations=1, **given)
    assert [told(one) for one in found.counts] == [told(one) for one in whole[1].values()]
    for one in found.counts:
        assert torch.equal(one.active[SITE], whole[1][one.domain].active[SITE])


def test_what_cannot_be_is_refused(lens: mm.Lens, corpus: mm.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InvalidValue, match=r"above 0 and at most 1, like 0.9"):
            EnoughRule(value)
    with pytest.raises(InvalidValue, match="until: one domain, medical; a selection is of two or more"):
        counted(lens, corpus.only("medical"), None)
    with monkeypatch.context() as patched:
        patched.setattr(mm.Lens, "remote", property(lambda self: "http://127.0.0.1:1"))
        with pytest.raises(InvalidValue, match="leave --until or --remote out"):
            counted(lens, corpus, None)
    given = ["count", "--model", "embedded/llava-next", "--corpus", str(corpus.folder), "--out", "/nowhere/run"]
    result = CliRunner().invoke(app, [*given, "--until", "0.9", "--shard", "1/2"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "--until 0.9 looks at all that was counted so far, and --shard 1/2 counts a part of it" in result.output


def test_parts_that_were_counted_otherwise_are_not_added_up() -> None:
    one = drawn("common", 30, 0)
    with pytest.raises(InvalidValue, match="cannot add up counts: provenance dtype is 'a' and 'b'"):
        counts_together([replace(one, provenance={"dtype": "a"}), replace(one, provenance={"dtype": "b"})])
