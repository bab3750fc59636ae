"""Sample lists: seeded, of the same tokens a domain, the same whatever the order of the files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random

import pytest
from PIL import Image
from published_formats import make

from mmneuron_lens import Lens
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.corpora import frames, prompts
from mmneuron_lens.corpora.published import read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.corpora.sample_list import SampleList
from mmneuron_lens.corpora.sampling import (
    balanced,
    draw_lists,
    evaluation_list,
    identification_list,
    save_lists,
)
from mmneuron_lens.corpora.token_count import LLAVA_NEXT, TokenCount
from mmneuron_lens.wire.images import decode


@pytest.fixture(scope="module")
def lens():
    return Lens.embedded("llava-next")


@pytest.fixture(scope="module")
def count(lens):
    return TokenCount(lens.processor.tokenizer, lens.architecture.facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make.write_all(tmp_path_factory.mktemp("corpora"), images=4)


def drawn(folder: Path, number: int) -> list[Sample]:
    """Samples of noise images of many sizes."""
    random = Random(3)
    samples = []
    for place in range(number):
        path = folder / f"{place}.png"
        Image.new("RGB", (random.randint(20, 300), random.randint(20, 300))).save(path)
        samples.append(Sample(f"id{place}", "common", (path,), "what " * (place % 5) + "is it?", ("yes",)))
    return samples


def sizes_of(sample: Sample) -> list[tuple[int, int]]:
    return [decode(path).size for path in sample.images]


def test_tokens_are_those_of_the_models_own_processor(lens, count, folder, tmp_path):
    samples = [next(iter(corpus)) for corpus in read_corpora(folder, "train").values()] + drawn(tmp_path, 12)
    for sample in samples:
        prompt = prompts.identification("llava-next", sample.question)
        prompt = prompt.replace("<image>\n", "<image>\n" * len(sample.images))
        pictures = [decode(path) for path in sample.images]
        encoded = lens.processor(text=[prompt], images=pictures, return_tensors="pt")
        assert count(sample, sizes_of(sample)) == encoded["attention_mask"].sum().item(), sample


def test_published_numbers_of_llava_next(count):
    published = TokenCount(count.tokenizer, LLAVA_NEXT)
    # One more each with BOS: 2,341, 1,949 and, five frames side by side, 1,161.
    assert published.image((640, 480)) == 2340
    assert published.image((1920, 1080)) == 1948
    assert published.image(frames.strip_size([(1920, 1080)] * 5)) == 1160
    assert TokenCount(count.tokenizer, {"patches": 576}).image((640, 480)) == 576


def test_frames_of_a_driving_segment(count):
    published = TokenCount(count.tokenizer, LLAVA_NEXT)
    segment = Sample("a", "auto_driving", tuple(map(Path, "abcde")), "why?", ("x",))
    sizes = [(1920, 1080)] * 5
    alone = published(Sample("a", "auto_driving", (Path("a"),), "why?", ("x",)), sizes[:1])
    # 3,584 positions hold one of 1,948, not two; with more room two do.
    assert published(segment, sizes) == alone
    wider = TokenCount(count.tokenizer, LLAVA_NEXT, room=5000)
    assert wider(segment, sizes) == alone + 1948 + len(count.tokenizer("\n", add_special_tokens=False)["input_ids"])
    strip = TokenCount(count.tokenizer, LLAVA_NEXT, frames="strip")
    assert strip(segment, sizes) == alone - 1948 + 1160
    assert frames.that_fit(sizes, lambda _: 3 * 1948, published.image) == (0, 2, 4)
    assert frames.that_fit(sizes, lambda _: 10, published.image) == (2,)
    assert [frames.evenly_spaced(number, 5) for number in (1, 2, 4, 5)] == [(2,), (0, 4), (0, 1, 3, 4), (0, 1, 2, 3, 4)]
    with pytest.raises(ValueError, match="6 of 5 frames cannot be chosen; give 1 to 5"):
        frames.evenly_spaced(6, 5)


def test_a_strip_holds_all_frames_side_by_side():
    colours = ["red", "green", "blue"]
    pictures = [Image.new("RGB", size, one) for size, one in zip([(8, 4), (16, 8), (6, 4)], colours, strict=True)]
    strip = frames.strip(pictures)
    assert strip.size == frames.strip_size([one.size for one in pictures]) == (22, 4)
    assert [strip.getpixel((x, 1)) for x in (0, 7, 8, 15, 16, 21)] == [
        one.getpixel((0, 0)) for one in pictures for _ in range(2)
    ]


@pytest.mark.parametrize("sizes", [[(7, 5)], [(1, 900), (900, 1)], [(1920, 1080)] * 5, [(3, 7), (10, 3), (999, 998)]])
def test_a_strip_has_the_size_that_its_tokens_are_counted_by(sizes):
    assert frames.strip([Image.new("RGB", size) for size in sizes]).size == frames.strip_size(sizes)


def test_a_strip_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no frame to show; give one or more"):
        frames.strip([])


def by_hand(samples, count, budget, seed=0):
    """A second writing: sort everything by its hash, then take until the budget is reached."""

    def key(sample):
        return hashlib.sha256(f"{seed}:identification:common:{sample.id}".encode()).hexdigest()

    taken, total = [], 0
    for sample in sorted(samples, key=key):
        if total >= budget:
            break
        taken.append(sample.id)
        total += count(sample, sizes_of(sample))
    return tuple(taken), total


@pytest.mark.parametrize("budget", [1, 500, 1500, 10**9])
def test_a_list_reaches_its_budget_and_no_more(count, tmp_path, budget):
    samples = drawn(tmp_path, 60)
    ids, total = by_hand(samples, count, budget)
    made = identification_list(samples, count, domain="common", budget=budget)
    assert (made.ids, made.total) == (ids, total)
    assert made.parameters["short"] == max(0, budget - total)
    assert made.tokens == tuple(count(one, sizes_of(one)) for name in ids for one in samples if one.id == name)
    shuffled = Random(1).sample(samples, len(samples))
    assert identification_list(shuffled, count, domain="common", budget=budget) == made
    assert budget == 10**9 or len(ids) < 60
    if budget == 1500:
        smaller = identification_list(samples, count, domain="common", budget=500)
        assert made.ids[: len(smaller.ids)] == smaller.ids
        assert identification_list(samples, count, domain="common", budget=budget, seed=1).ids != made.ids


def test_few_images_are_opened_once_the_budget_is_reached(count, tmp_path):
    samples = drawn(tmp_path, 60)
    seen = []

    def counting(sample, sizes):
        seen.append(sample.id)
        return count(sample, sizes)

    counting.parameters = count.parameters
    made = identification_list(samples, counting, domain="common", budget=500)  # type: ignore[arg-type]
    assert len(made.ids) <= len(seen) < 45


def test_lists_of_all_domains_are_balanced_by_tokens(count, folder, tmp_path):
    lists = {}
    for domain, corpus in read_corpora(folder, "train").items():
        lists[domain] = identification_list(corpus, count, domain=domain, corpus=corpus.name)
    least = min(one.total for one in lists.values())
    for domain, one in balanced(lists).items():
        assert least <= one.total < least + max(lists[domain].tokens)
        assert one.total - one.tokens[-1] < least
        assert one.ids == lists[domain].ids[: len(one.ids)]
        assert one.parameters["cut to"] == least
    drawn_lists = [one for one, problems in draw_lists(folder, count, questions=2) if not len(problems)]
    assert [(one.purpose, one.domain) for one in drawn_lists] == [
        (purpose, domain) for purpose in ("identification", "evaluation") for domain in DOMAINS
    ]
    assert drawn_lists[:5] == [*balanced(lists).values()]
    assert [len(one.ids) for one in drawn_lists[5:]] == [2] * 5
    files = save_lists(drawn_lists, tmp_path)
    assert files[7] == tmp_path / "evaluation" / "medical.json"
    assert [SampleList.load(file) for file in files] == drawn_lists


def test_questions_for_evaluation(tmp_path):
    samples = drawn(tmp_path, 30)

    def key(sample):
        return hashlib.sha256(f"5:evaluation:common:{sample.id}".encode()).hexdigest()

    made = evaluation_list(reversed(samples), domain="common", questions=7, seed=5)
    assert made.ids == tuple(one.id for one in sorted(samples, key=key)[:7])
    assert [one.id for one in made.pick(samples)] == list(made.ids)
    assert (made.parameters["short"], made.tokens) == (0, ())
    everything = evaluation_list(samples, domain="common")
    assert (len(everything.ids), everything.parameters["short"]) == (30, 470)


def test_an_unreadable_image_is_named_and_another_sample_takes_its_place(count, tmp_path):
    samples = drawn(tmp_path, 30)
    first = evaluation_list(samples, domain="common", questions=3)
    bad = next(one for one in samples if one.id == first.ids[0])
    bad.images[0].write_text("no picture")
    problems = RecordProblems(tmp_path)
    made = evaluation_list(samples, domain="common", questions=3, problems=problems)
    assert made.ids[:2] == first.ids[1:]
    assert len(made.ids) == 3
    assert f"common question {bad.id}: image cannot be decoded" in str(problems)
    assert bad.id not in identification_list(samples, count, domain="common", problems=problems).ids
    assert len(problems) == 1


def test_an_artifact_is_the_same_bytes_and_refuses_what_it_is_not(count, tmp_path):
    samples = drawn(tmp_path, 10)
    made = identification_list(samples, count, domain="common", corpus="VQAv2", budget=300, seed=2)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    made.save(one)
    made.save(two)
    assert one.read_bytes() == two.read_bytes()
    assert SampleList.load(one) == made
    document = json.loads(one.read_text())
    assert document["ids sha256"] == hashlib.sha256("\n".join(made.ids).encode()).hexdigest()
    assert (document["parameters"]["seed"], document["parameters"]["budget"]) == (2, 300)
    assert document["parameters"]["count"]["tile_size"] == 64
    assert str(tmp_path) not in one.read_text()
    one.write_text(one.read_text().replace(made.ids[0], made.ids[1], 1))
    with pytest.raises(ArtifactError, match=r"one\.json: is damaged .*run the command that wrote it again"):
        SampleList.load(one)
    one.write_text(json.dumps({"kind": "sample list", "version": 1, "ids": ["id0"]}))
    with pytest.raises(ArtifactError, match=r"one\.json: has no checksum .*an earlier version, which is not read"):
        SampleList.load(one)
    with pytest.raises(ArtifactError, match=r"1 of \d listed samples are not in VQAv2 train, the first: id\d+; give"):
        made.pick(one for one in samples if one.id != made.ids[0])


def test_no_budget_and_no_questions_are_refused(count):
    with pytest.raises(ValueError, match="budget is 0 tokens; it must be 1 or more"):
        identification_list([], count, domain="common", budget=0)
    with pytest.raises(ValueError, match="0 questions; give 1 or more"):
        evaluation_list([], domain="common", questions=0)
