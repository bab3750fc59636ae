"""Switching neurons off against hooks that zero them; scores and intervals against hand computation."""

from __future__ import annotations

import numpy
import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus
from hooks import hooked, neuron_paths
from scipy.stats import binom

from interventions import Graph
from interventions.bindings import PerLayer
from mmneuron_lens.artifacts.answers import Answer, Answers
from mmneuron_lens.artifacts.selection import MODULES
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.evaluation.ablation import Ablation
from mmneuron_lens.evaluation.accuracy import against_random, cross_scores, is_right, scored_by, scores
from mmneuron_lens.experiments.ablate import (
    PAPER_GENERATION,
    AskedQuestion,
    MemoryRows,
    ablate,
    generation_settings,
)
from mmneuron_lens.experiments.conditions import Condition, conditions_of
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.metrics.intervals import mean_interval
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.runs import api
from mmneuron_lens.runs.answer import answer_stage
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.store import Store, StoreConflict

GENERATION = {"max_new_tokens": 4}


@pytest.fixture
def corpus(tmp_path):
    samples, _ = read_folder(write_corpus(tmp_path, images=4))
    return by_domain(samples)


@pytest.fixture
def selection(lens, corpus):
    return select([count_domain(lens, some) for some in corpus.values()], fraction=0.3, percentile=0.6)


def masks_of(condition):
    (intervention,) = condition.graph
    bound = intervention.bindings["neurons"]
    assert isinstance(bound, PerLayer)
    return {site: mask if mask.ndim == 2 else mask[None] for site, mask in bound.values.items()}


def zeroed_by_hooks(lens, samples, masks):
    """What the model says in generation while plain hooks zero these neurons."""
    hooks = {
        path: lambda out, off=masks[site][layer]: out.masked_fill(off, 0)
        for site, paths in neuron_paths(lens).items()
        if site in masks
        for layer, path in enumerate(paths)
    }
    batch, _ = encode(lens, samples, "evaluation")
    assert batch is not None
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    with torch.no_grad(), hooked(lens.module, hooks):
        ids = lens.module.generate(**inputs, do_sample=False, num_beams=1, **GENERATION)
    new = ids[:, batch.prompt_length :] if ids.shape[1] >= batch.prompt_length else ids
    return [text.strip() for text in lens.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def test_answers_equal_those_under_hooks_that_zero(lens, corpus, selection):
    answers = ablate(lens, selection, corpus, batch_size=1, random_draws=2, **GENERATION)
    told = {(one.condition, one.domain, one.id): one.answer for one in answers}
    assert len(told) == len(answers) == 2 * 4 * 8
    changed = 0
    for domain, samples in corpus.items():
        for condition in conditions_of(selection, domain, random_draws=2):
            masks = masks_of(condition) if len(condition.graph) else {}
            for sample in samples[:3]:
                assert told[condition.condition, domain, sample.id] == zeroed_by_hooks(lens, [sample], masks)[0]
        own, none = ([told[name, domain, sample.id] for sample in samples] for name in ("domain", "none"))
        changed += own != none
    assert changed == 2


def test_answers_come_back_with_their_own_question(lens, corpus, selection):
    one_by_one = ablate(lens, selection, corpus, batch_size=1, random_draws=1, **GENERATION)
    together = ablate(lens, selection, corpus, batch_size=3, random_draws=1, **GENERATION)
    assert together == one_by_one
    first = one_by_one[0]
    assert (first.module, first.condition, first.neurons_of, first.domain) == ("None", "none", "", "common")
    assert [one.id for one in one_by_one[:8]] == [sample.id for sample in corpus["common"]]
    asked = {sample.id: sample for some in corpus.values() for sample in some}
    for one in one_by_one:
        assert (one.question, one.answers) == (asked[one.id].question, asked[one.id].answers)


def test_an_answer_is_known_by_its_model(corpus):
    """By the fingerprint: a name alone would give one model's answers to another."""
    nothing_off = Condition("None", "none", "", Graph())
    asked = ("m", "", corpus["medical"][0], nothing_off, "evaluation", {}, {})
    lenses = [tiny_lens(name) for name in ("llava_next", "instructblip")]
    digests = [AskedQuestion(lens, *asked).digest for lens in lenses]
    assert digests[0] != digests[1]
    assert AskedQuestion(lenses[0], *asked).digest == digests[0]


def test_answers_are_generated_as_the_paper_says():
    """Section 4.1.3: five beams, length penalty -1, at most 512 tokens; nothing is drawn, so nothing needs a seed."""
    stated = {"num_beams": 5, "length_penalty": -1.0, "max_new_tokens": 512, "do_sample": False}
    assert stated == PAPER_GENERATION == Plan().generation
    assert generation_settings({}) == {"do_sample": False, "num_beams": 1, "max_new_tokens": 16}


def test_conditions_switch_off_the_domains_neurons_and_as_many_random_ones(selection):
    none, own, *random = conditions_of(selection, "medical", random_draws=3, seed=5)
    assert none.graph.interventions == ()
    assert [one.condition for one in (none, own, *random)] == ["none", "domain", "random 1", "random 2", "random 3"]
    index = selection.domains.index("medical")
    seen = []
    for site, mask in masks_of(own).items():
        assert torch.equal(mask, selection.masks[site][..., index])
        for draw in random:
            drawn = masks_of(draw)[site]
            assert int(drawn.sum()) == int(mask.sum())
            assert not bool((drawn & selection.masks[site].any(-1)).any())
            seen.append(drawn.flatten().tolist())
    assert masks_of(own).keys() == selection.masks.keys()
    assert sum(int(mask.sum()) for mask in masks_of(own).values()) > 10
    assert seen[0] != seen[1]
    again = conditions_of(selection, "medical", random_draws=3, seed=5)
    assert [one.graph for one in again] == [one.graph for one in (none, own, *random)]
    assert conditions_of(selection, "medical", seed=6)[2].graph != random[0].graph


def test_one_module_at_a_time(selection):
    modules = tuple(dict.fromkeys(MODULES[site] for site in selection.masks))
    conditions = conditions_of(selection, "common", modules=("All", *modules), random_draws=1)
    assert [one.module for one in conditions] == ["None", *(name for name in ("All", *modules) for _ in range(2))]
    for condition in conditions[3:]:
        assert all(MODULES[site] == condition.module for site in masks_of(condition))
    with pytest.raises(KeyError, match="no site or module 'Brain'; choose from"):
        conditions_of(selection, "common", modules=("Brain",))
    with pytest.raises(KeyError, match="no domain 'food' in this selection; choose from common, medical"):
        conditions_of(selection, "food")


def test_the_neurons_of_one_domain_and_the_questions_of_another(lens, corpus, selection):
    answers = ablate(lens, selection, corpus, random_draws=1, cross=True, selection_id="abc", **GENERATION)
    assert {one.selection for one in answers} == {"abc"}
    rows = cross_scores(answers)
    pairs = [(row["neurons_of"], row["domain"]) for row in rows]
    assert sorted(pairs) == [(one, two) for one in ("common", "medical") for two in ("common", "medical")]
    own = {row["domain"] for row in scores(answers) if row["condition"] == "domain"}
    assert own == {"common", "medical"}
    assert len(scores(answers)) == 2 * 3


def counted_calls(lens, monkeypatch) -> list[int]:
    """Grows by the questions of every call of `generate`, each as often as there are conditions."""
    calls: list[int] = []
    real = type(lens).generate

    def counting(self, graphs, batch, **settings):
        calls.append(batch.rows * len(graphs))
        return real(self, graphs, batch, **settings)

    monkeypatch.setattr(type(lens), "generate", counting)
    return calls


def test_an_image_that_cannot_be_read_costs_its_own_questions_only(lens, corpus, selection, tmp_path, monkeypatch):
    file = tmp_path / "images" / "common1.png"
    file.write_bytes(file.read_bytes()[:-2000])
    samples, problems = read_folder(tmp_path)
    rows, calls = MemoryRows(), counted_calls(lens, monkeypatch)
    settings = {"random_draws": 1, "rows": rows, **GENERATION}
    answers = ablate(lens, selection, by_domain(samples), problems=problems, **settings)
    assert [problem.line for problem in problems] == [3, 4]
    assert len(answers) == 3 * (6 + 8)
    # The others are there, so nothing is asked again, and it is named again.
    before = len(calls)
    _, problems = read_folder(tmp_path)
    assert ablate(lens, selection, by_domain(samples), problems=problems, **settings) == answers
    assert len(problems) == 2
    assert len(calls) == before


def told(condition: str, right: list[bool], domain: str = "medical", neurons_of: str | None = None) -> list[Answer]:
    owner = "" if condition == "none" else domain if neurons_of is None else neurons_of
    module = "None" if condition == "none" else "All"
    return [
        Answer("<m>", module, condition, owner, domain, str(number), "?", ("Yes", "yeah"), " yes " if good else "no")
        for number, good in enumerate(right)
    ]


def test_scores_by_hand_and_again_from_the_file(tmp_path):
    answers = [
        *told("none", [True, True, True, False]),
        *told("domain", [False, True, False, False]),
        *told("random 1", [True, True, True, True]),
        *told("random 2", [True, True, False, False]),
    ]
    rows = scores(answers)
    assert [row["accuracy"] for row in rows] == [75.0, 25.0, 100.0, 50.0]
    assert [row["difference"] for row in rows] == [0.0, -50.0, 25.0, -25.0]
    assert {row["questions"] for row in rows} == {4}
    assert (rows[0]["low"], rows[0]["high"]) == (None, None)
    # Differences -1, 0, -1, 0: the mean of four draws is -1 or 0 with probability 1/16 each, more than 2.5 %.
    assert (rows[1]["low"], rows[1]["high"]) == (-100.0, 0.0)
    (against,) = against_random(answers)
    assert against["difference"] == 25.0 - (100.0 + 50.0) / 2
    assert against["domain"] == "medical"
    Answers(tuple(answers), {"seed": 0}).save(tmp_path / "answers" / "m.jsonl")
    again = Answers.load(tmp_path / "answers" / "m.jsonl")
    assert (list(again), again.settings) == (answers, {"seed": 0})
    assert scores(again) == rows
    assert Ablation(again).to_frame().to_dicts() == rows
    assert Ablation(again).against_random().to_dicts() == [against]
    strict = scores(answers, match=lambda one: one.answer in one.answers)
    assert {row["accuracy"] for row in strict} == {0.0}


def test_the_interval_of_paired_differences_is_the_binomial_one():
    first, second = numpy.zeros(200), numpy.zeros(200)
    second[:30] = 100.0
    low, high = mean_interval(first - second)
    # Resampling pairs that differ by 100 in 30 of 200 questions is a binomial draw.
    exact = [-100 * binom.ppf(level, 200, 30 / 200) / 200 for level in (0.975, 0.025)]
    assert low is not None
    assert high is not None
    assert abs(low - exact[0]) <= 0.5
    assert abs(high - exact[1]) <= 0.5
    assert mean_interval(first - second) == (low, high)
    assert mean_interval(second - second) == (0.0, 0.0)
    # Pairs matter: two conditions that are right on the same questions do not differ.
    noisy = numpy.random.default_rng(0).integers(0, 2, 200) * 100.0
    assert mean_interval(noisy - noisy) == (0.0, 0.0)
    assert mean_interval(first[:1] - second[:1]) == (None, None)


def test_conditions_that_were_asked_different_questions_are_not_compared():
    with pytest.raises(ValueError, match="answers to different questions; answer all under each"):
        scores([*told("none", [True, True]), *told("domain", [True])])


def answer_of(text: str, accepted: tuple[str, ...], options: tuple[str, ...] = (), domain: str = "common") -> Answer:
    return Answer("m", "None", "none", "", domain, "1", "?", accepted, text, options=options)


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        (" YES\n", ("no", "Yes"), True),
        ("Yes.", ("yes",), True),
        ("The  dog!", ("dog",), True),
        ("two", ("2",), True),
        ("X-ray", ("x ray",), True),
        ("**heart**", ("heart",), True),
        ("-5", ("5",), False),
        ("<50%", (">50%",), False),
        ("vitamin", ("vitamin A",), False),
        ("yes and no", ("yes",), False),
        ("", ("yes",), False),
        ("...", ("yes",), False),
    ],
)
def test_open_answers_are_right_in_normal_form(text, accepted, right):
    assert is_right(answer_of(text, accepted)) is right


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        ("B.", ("B",), True),
        ("(b) diffuse", ("B",), True),
        ("Bone", ("C",), True),
        ("It is bone.", ("C",), True),
        ("A bone", ("A",), False),
        ("boen", ("C",), False),
        ("C", ("bone",), True),
        ("I do not know", ("A",), False),
    ],
)
def test_answers_to_options_are_right_by_the_option_they_name(text, accepted, right):
    assert is_right(answer_of(text, accepted, ("focal uptake", "diffuse uptake", "bone"))) is right


def test_how_each_domain_is_scored_is_said():
    some = [answer_of("B", ("B",), ("x", "y"), "medical"), answer_of("yes", ("yes",))]
    option = "accuracy of the option that the answer names, by letter or text"
    plain = "accuracy, equal to an accepted answer but for case, punctuation, articles and white space"
    assert scored_by(some) == {"medical": option, "common": plain}
    assert (
        scored_by([*some, answer_of("yes", ("yes",), (), "medical")])["medical"]
        == f"{option}; without options: {plain}"
    )
    assert Ablation(some).metrics == scored_by(some)
    # What a model was asked with options is scored with them again from the file.
    assert all(row["accuracy"] == 100 for row in Ablation(some).to_frame().to_dicts())


class Stopped(Exception):
    pass


def stopping_after(calls: int, lens, monkeypatch) -> None:
    """Generation is done so many times and then stops the process, as a kill would between two writes."""
    real, left = type(lens).generate, iter(range(calls))

    def stopping(*arguments, **settings):
        if next(left, None) is None:
            raise Stopped
        return real(*arguments, **settings)

    monkeypatch.setattr(type(lens), "generate", stopping)


def test_answering_goes_on_where_it_was_stopped(lens, corpus, selection, tmp_path, monkeypatch):
    settings = {"batch_size": 1, "random_draws": 1, **GENERATION}

    def answer(out, **changed):
        return answer_stage(lens, selection, corpus, Store(tmp_path / out, say=said.append), **{**settings, **changed})

    said: list[str] = []
    whole = answer("whole")
    with monkeypatch.context() as patch:
        stopping_after(3, lens, patch)
        with pytest.raises(Stopped):
            answer("run")
    (first, *others) = sorted((tmp_path / "run").rglob("*.pieces/*.jsonl"))
    assert len(others) == 2
    # One file of answers is damaged: those are asked again, and no others.
    first.write_bytes(first.read_bytes()[:-20])
    calls = counted_calls(lens, monkeypatch)
    # Whatever the batch size: one by one before, by four now.
    assert list(answer("run", batch_size=4)) == list(whole)
    assert [line for line in said if f"{first}: " in line and "It was moved aside, and is made again" in line]
    (one, other) = ((tmp_path / out).rglob("*.jsonl") for out in ("whole", "run"))
    assert next(one).read_bytes() == next(other).read_bytes()
    assert not list((tmp_path / "run").rglob("*.pieces"))
    # Of 8 questions in two domains under three conditions, two questions were kept.
    asked = sum(calls)
    assert asked == 2 * 3 * 8 - 2 * 3
    assert list(answer("run", batch_size=2)) == list(whole)
    assert sum(calls) == asked


def test_answers_are_not_given_twice_and_never_replaced_unasked(lens, corpus, selection, tmp_path, monkeypatch):
    settings = {"batch_size": 4, "controls": ("All",), **GENERATION}

    def answer(replace=False, **changed):
        return answer_stage(lens, selection, corpus, Store(tmp_path, replace=replace), **{**settings, **changed})

    before = answer(random_draws=0)
    calls = counted_calls(lens, monkeypatch)
    more = {"modules": ("LLM", "All"), "random_draws": 1}
    with pytest.raises(StoreConflict, match=r"another value: .*conditions random_draws is 0 there and 1 here"):
        answer(**more)
    assert calls == []
    after = answer(replace=True, **more)
    assert set(before) < set(after)
    assert {(one.module, one.condition) for one in after} == {
        *(("None", "none"), ("LLM", "domain"), ("All", "domain"), ("All", "random 1")),
    }
    # One call for each batch of a domain, under the conditions that are new: the language model's neurons, and random
    # ones.
    assert calls == [4 * 2] * 2 * 2
    assert set(answer(replace=True, random_draws=0)) == set(before)
    assert len(calls) == 2 * 2
    answer(replace=True, random_draws=0, max_new_tokens=2)
    assert len(calls) == 2 * 2 + 2 * 2


def test_what_was_asked_of_other_neurons_is_no_answer_of_these(lens, selection, tmp_path):
    """Public calls with a folder: a selection is known by its neurons, whether or not it was saved."""
    corpus = load_corpus(tmp_path)
    other = select([count_domain(lens, some) for some in corpus.by_domain().values()], fraction=0.2, percentile=0.6)
    settings = {"random_draws": 1, "out": tmp_path / "run"}
    selection.save(file_of(tmp_path / "run", "selection", selection.model))
    for call, more in ((api.ablate, GENERATION), (api.deviate, {})):
        first = call(lens, selection, corpus, **settings, **more).to_frame()
        assert call(lens, selection, corpus, **settings, **more).to_frame().equals(first)
        with pytest.raises(StoreConflict, match="neurons sha256 is"):
            call(lens, other, corpus, **settings, **more)
        replaced = call(lens, other, corpus, replace=True, **settings, **more).to_frame()
        assert replaced.equals(call(lens, other, corpus, random_draws=1, **more).to_frame())
