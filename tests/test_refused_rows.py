"""Rows that only encoding or the forward can refuse: named with their line, left out, and the others count as alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_lens
from refused import LENSES, cases, corpus, lens_with_words, raising, same, selection_of, without
from typer.testing import CliRunner

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.counts import LEFT_OUT, Counts
from mmneuron_lens.cli import app
from mmneuron_lens.corpora.folder import Problems, by_domain
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.experiments.ablate import ablate
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.deviate import deviate
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.experiments.entropy import read_entropy
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.runs.store import Store


@pytest.fixture(params=LENSES)
def any_lens(request) -> tuple[str, Lens]:
    return request.param, lens_with_words(request.param)


@pytest.mark.parametrize("exact", [False, True], ids=["packed", "exact"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_every_kind_is_named_and_the_others_count_as_if_it_were_not_there(any_lens, tmp_path, exact, batch_size):
    name, lens = any_lens
    kinds = cases(name)
    # The first, the last, neighbours, and those between good ones.
    bad = {1 + 2 * place if place < 9 else 9 + place: text for place, (text, _) in enumerate(kinds.values())}
    last = len(bad) + 14
    bad[last] = bad.pop(max(bad))
    samples, problems = corpus(tmp_path, bad)
    good = without(samples, bad)
    assert len(good) == 14
    counts = count_domain(lens, samples, problems=problems, exact=exact, batch_size=batch_size)
    expected = count_domain(lens, good, exact=exact, batch_size=batch_size)
    assert same(counts, expected)
    assert counts.samples == 14
    assert sorted(one.line for one in problems) == sorted(bad)
    for line, (_, says) in zip(bad, kinds.values(), strict=False):
        (one,) = (one for one in problems if one.line == line)
        assert says in one.says, (one.says, says)
        assert str(one).startswith(f"{tmp_path / 'questions.jsonl'}, line {line}: ")
        assert str(one).isprintable()
        assert len(one.says) < 400
    assert {one for one in counts.provenance[LEFT_OUT]} <= {f"row {line}" for line in bad}


STAGES = {
    "count": lambda lens, asked, problems: [count_domain(lens, asked, problems=problems, batch_size=4).active],
    "entropy": lambda lens, asked, problems: [
        {name: getattr(read_entropy(lens, asked, problems=problems, batch_size=4), name)}
        for name in ("tokens", "below")
    ],
    "means": lambda lens, asked, problems: [
        mean_activations(lens, {"common": asked}, problems=problems, batch_size=4).values
    ],
    "embed": lambda lens, asked, problems: [
        {"vectors": embed_images(lens, {"common": asked}, problems=problems, batch_size=4).vectors}
    ],
}


def close(one, other) -> bool:
    return all(
        torch.equal(a[key], b[key]) if a[key].dtype == torch.int64 else torch.allclose(a[key], b[key], atol=1e-6)
        for a, b in zip(one, other, strict=True)
        for key in a
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_every_stage_leaves_them_out(name, stage, tmp_path):
    lens = lens_with_words(name)
    bad = {1: "a </s>", 4: "why " * 600, 5: "a giraffe", 9: "<image> it"}
    samples, problems = corpus(tmp_path, bad, 10)
    run = STAGES[stage]
    assert close(run(lens, samples, problems), run(lens, without(samples, bad), None))
    # Of an image that has a good question as well, nothing is lost.
    assert sorted(one.line for one in problems) == ([1, 9] if stage == "embed" else sorted(bad))


@pytest.mark.parametrize("stage", ["count", "entropy", "means"])
def test_every_stage_goes_on_where_the_forward_raises(lens, stage, tmp_path):
    bad = {1: "a ~ b", 7: "what~", 8: "~"}
    samples, problems = corpus(tmp_path, bad, 10)
    expected = STAGES[stage](lens, without(samples, bad), None)
    with raising(lens):
        found = STAGES[stage](lens, samples, problems)
    assert close(found, expected)
    assert [one.line for one in sorted(problems, key=lambda one: one.line)] == [1, 7, 8]
    assert problems.found[0].says == (
        "the model cannot run it (IndexError: no such thing in /some/folder/of/this/machine.py); "
        "write it otherwise, or remove the row."
    )


def test_deviations_leave_them_out(lens, tmp_path):
    bad = {2: "a ~", 3: "a <pad>", 6: "why " * 600}
    samples, problems = corpus(tmp_path, bad, 6)
    good = without(samples, bad)
    selection = selection_of(lens, good)
    expected = deviate(lens, selection, good, random_draws=1, batch_size=4)
    with raising(lens):
        found = deviate(lens, selection, samples, random_draws=1, batch_size=4, problems=problems)
    assert found.samples == expected.samples == tuple(sorted(one.id for one in good))
    assert all(torch.allclose(found.values[name], expected.values[name], atol=1e-5) for name in found.values)
    assert sorted(one.line for one in problems) == [2, 3, 6]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_answers_stay_beside_their_questions(lens, tmp_path, batch_size):
    bad = {1: "a ~", 4: "a <pad>", 5: "why " * 600, 11: "~"}
    samples, problems = corpus(tmp_path, bad, 8)
    good = without(samples, bad)
    selection = selection_of(lens, good)
    settings = {"random_draws": 2, "max_new_tokens": 3}
    expected = ablate(lens, selection, {"common": good}, batch_size=1, **settings)
    with raising(lens) as tried:
        found = ablate(lens, selection, {"common": samples}, batch_size=batch_size, problems=problems, **settings)
    assert len(expected) == 8 * 4
    assert [(one.id, one.question, one.condition, one.answer) for one in found] == [
        (one.id, one.question, one.condition, one.answer) for one in expected
    ]
    assert sorted(one.line for one in problems) == sorted(bad)
    # Under the first condition alone: in the batches of halves, never again.
    assert len(tried) <= 2 * (1 + 4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_corpus_of_nothing_else_ends_with_the_first_reason(lens, stage, tmp_path):
    samples, problems = corpus(tmp_path, {1: "a <s>", 2: "</s>"}, 0)
    with pytest.raises(
        InvalidValue, match=r"^no sample of common could be read; see .* The first: question 'a <s>' hol"
    ):
        STAGES[stage](lens, samples, problems)
    samples, problems = corpus(tmp_path, {1: "why " * 600, 2: "how " * 700}, 0)
    with pytest.raises(
        InvalidValue, match=r"^no sample of common .* The first: the prompt takes [23]\d+ positions"
    ) as caught:
        STAGES[stage](lens, samples, problems)
    assert isinstance(caught.value.__cause__, InvalidValue)
    assert len(str(caught.value).splitlines()) == 1


def test_answers_to_nothing_end_with_the_first_reason(lens, tmp_path):
    samples, _ = corpus(tmp_path / "good", {}, 6)
    selection = selection_of(lens, samples)
    samples, problems = corpus(tmp_path, {1: "why " * 600, 2: "</s>"}, 0)
    with pytest.raises(InvalidValue, match=r"^no sample of common could be read; .* The first: the prompt takes"):
        ablate(lens, selection, {"common": samples}, problems=problems, max_new_tokens=2)
    with pytest.raises(InvalidValue, match=r"^no sample of common could be read; .* The first: the prompt takes"):
        deviate(lens, selection, samples, problems=problems)


def test_a_trace_of_one_is_one_line(lens, tmp_path):
    samples, _ = corpus(tmp_path, {1: "</s>", 2: "why " * 600, 3: "<image>\n<image>\nwhy"}, 1)
    for sample, says in zip(samples, ("holds '</s>'", "the prompt takes", "2 '<image>' for 1 images"), strict=False):
        with pytest.raises(InvalidValue, match=says) as caught:
            trace_sample(lens, sample)
        assert str(caught.value).startswith(f"question '{sample.id}' of common: ")
    assert trace_sample(lens, samples[3]).id == "row 4"


def test_published_records_are_named_by_domain_and_id(lens, tmp_path):
    samples, _ = corpus(tmp_path, {2: "</s>", 3: "why " * 600}, 3)
    problems = RecordProblems(tmp_path)
    assert count_domain(lens, samples, problems=problems).samples == 3
    assert sorted(str(one).split(": ")[0] for one in problems) == [
        f"{tmp_path}, common question row {line}" for line in (2, 3)
    ]


def test_the_command_counts_the_others_and_names_them(tmp_path):
    bad = {1: "</s> why", 5: "<image>\n<image>\nwhy", 8: "why " * 1200}
    corpus(tmp_path / "corpus", bad, 8)
    out = tmp_path / "run"
    words = ["count", "--model", "embedded/instructblip", "--corpus", tmp_path / "corpus", "--out", out]
    for _ in range(2):
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.stderr
        assert "3 of 11 rows skipped:" in result.stderr
        for line, says in {1: "holds '</s>'", 5: "begins or ends with 2", 8: "the prompt takes 3614 positions"}.items():
            assert f"{tmp_path / 'corpus' / 'questions.jsonl'}, line {line}: " in (out / "problems.txt").read_text()
            assert says in (out / "problems.txt").read_text()
    assert Counts.load(*out.rglob("common.safetensors")).samples == 8


def test_problems_of_a_folder_know_every_row(tmp_path):
    samples, problems = corpus(tmp_path, {2: "a <s>"}, 3)
    assert isinstance(problems, Problems)
    assert by_domain(samples).keys() == {"common"}
    assert problems.lines.keys() == {one.id for one in samples}


def test_the_paper_says_which_rows_it_skipped(tmp_path, monkeypatch):
    from mmneuron_lens.paper import run as paper

    _, problems = corpus(tmp_path / "corpus", {2: "a <s>"}, 3)
    said = []
    store = Store(tmp_path / "run", say=said.append)
    questions = paper.Questions("mine", {}, {}, problems)

    def stages(lens, questions, plan, store, **_):
        questions.problems.add(2, "no good")
        raise InvalidValue("stopped")

    monkeypatch.setattr(paper, "run_model", stages)
    monkeypatch.setattr(paper, "Lens", lambda name: None)
    with pytest.raises(InvalidValue, match="stopped"):
        paper.paper(store, models=["one"], questions=questions)
    file = tmp_path / "run" / "problems.txt"
    (shown,) = said
    assert shown == f"1 of 4 rows skipped:\n{problems.found[0]}\nAll of them: {file}"
    assert file.read_text() == f"1 of 4 rows skipped:\n{tmp_path / 'corpus' / 'questions.jsonl'}, line 2: no good\n"


def test_traces_are_of_questions_that_were_answered(tmp_path):
    """The first row of a domain is refused; the whole run of one model goes on."""
    from mmneuron_lens.artifacts.lens_trace import LensTrace
    from mmneuron_lens.runs.pipeline import run_model
    from mmneuron_lens.runs.plan import Plan
    from mmneuron_lens.runs.questions import Questions

    lens = tiny_lens("llava")
    bad = {1: "a ~", 2: "a <pad>", 3: "why " * 126}
    samples, problems = corpus(tmp_path / "corpus", bad, 7)
    others = [replace(one, domain="medical") for one in without(samples, bad)]
    asked = {"common": samples, "medical": others}
    problems.lines |= {one.id: problems.lines[one.id] for one in others}
    plan = Plan(
        random_draws=1, ablation_draws=1, permutations=1, fraction=0.2, percentile=0.6, cross=False,
        generation={"max_new_tokens": 2},
    )  # fmt: skip
    with raising(lens):
        run_model(lens, Questions("mine", asked, asked, problems), plan, Store(tmp_path / "run"))
    traces = [LensTrace.load(file) for file in sorted((tmp_path / "run" / "traces").rglob("*.safetensors"))]
    assert [(one.domain, one.id) for one in traces] == [("common", "row 4"), ("medical", "row 4")]
    assert sorted(one.line for one in problems) == [1, 2, 3]
