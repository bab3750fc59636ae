"""What one sample raises is its own, and stays so when a run goes on; what is about the run ends it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn_corpus import files_of
from refused import corpus, raising, read_nothing, same, selection_of, without

from interventions.errors import InvalidValue, MMNeuronError, ServerUnreachable, StorageFailed
from mmneuron_lens.artifacts.counts import LEFT_OUT, Counts
from mmneuron_lens.batching.gather import Memory, Shard
from mmneuron_lens.batching.left_out import LeftOut, attributed
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.runs.answer import answer_stage
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.merging import merge_runs
from mmneuron_lens.runs.store import Store


def test_refused_questions_are_not_answered_when_a_run_goes_on(lens, tmp_path):
    bad = {1: "a ~", 4: "a <pad>", 5: "why " * 600}
    folder = tmp_path / "corpus"
    samples, first = corpus(folder, bad, 6)
    selection = selection_of(lens, without(samples, bad))
    settings = {"random_draws": 1, "max_new_tokens": 3, "batch_size": 3}

    class Stopped(BaseException):
        pass

    def stopping(groups, name):
        for number, group in enumerate(groups):
            if number == 0 and name.startswith("answering"):
                yield group
                raise Stopped
            yield group

    with raising(lens):
        expected = answer_stage(
            lens, selection, {"common": samples}, Store(tmp_path / "whole"), problems=first, **settings
        )
        again = read_folder(folder)[1]
        with pytest.raises(Stopped):
            answer_stage(
                lens, selection, {"common": samples}, Store(tmp_path / "killed"), problems=again, progress=stopping,
                **settings,
            )  # fmt: skip
        named = read_folder(folder)[1]
        found = answer_stage(
            lens, selection, {"common": samples}, Store(tmp_path / "killed"), problems=named, **settings
        )
    assert found.answers == expected.answers
    assert sorted(map(str, named)) == sorted(map(str, first))
    assert files_of(tmp_path / "killed").keys() == files_of(tmp_path / "whole").keys()


def test_a_count_that_goes_on_names_them_again_and_does_not_try_them(lens, tmp_path):
    bad = {1: "a ~", 2: "<s>", 5: "why " * 600, 12: "~~"}
    folder = tmp_path / "corpus"
    samples, first = corpus(folder, bad, 10)
    broken = folder / "images" / "common3.png"
    broken.write_bytes(broken.read_bytes()[:-3000])
    with raising(lens):
        expected = count_stage(lens, {"common": samples}, Store(tmp_path / "whole"), problems=first, batch_size=2)[
            "common"
        ]

    class Stopped(BaseException):
        pass

    runs = []
    for _ in range(40):
        steps = 0

        def stopping(steps_left, name):
            for step in steps_left:
                yield step
                raise Stopped

        problems = read_folder(folder)[1]
        with raising(lens) as tried:
            try:
                found = count_stage(
                    lens, {"common": samples}, Store(tmp_path / "killed"), problems=problems, batch_size=2,
                    progress=stopping,
                )["common"]  # fmt: skip
            except Stopped:
                steps = len(problems)
                runs.append((len(tried), steps))
                continue
        break
    assert len(runs) > 2
    assert same(found, expected)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert str(tmp_path) not in json.dumps(found.provenance)
    assert "machine.py" in json.dumps(found.provenance["reasons"])
    # Each of them fails in the one process that comes to it: in its batch, and alone.
    assert sum(count for count, _ in runs) <= 2 * 3
    with raising(lens) as tried:
        for store in ("killed", "whole"):
            problems = read_folder(folder)[1]
            count_stage(lens, {"common": samples}, Store(tmp_path / store), problems=problems, batch_size=2)
            assert {one.line: one.says.replace("/some/folder/of/this/", "") for one in problems} == {
                one.line: one.says.replace("/some/folder/of/this/", "") for one in first
            }
    assert not tried


def test_shards_merge_with_them(lens, tmp_path):
    bad = {1: "a ~", 2: "<s>", 5: "why " * 600, 9: "~~", 10: "~~~"}
    samples, problems = corpus(tmp_path / "corpus", bad, 10)
    with raising(lens):
        expected = count_domain(lens, samples, problems=problems, batch_size=2)
        for number in (1, 2, 3):
            stores = Store(tmp_path / f"shard {number}")
            count_stage(lens, {"common": samples}, stores, problems=problems, batch_size=2, shard=Shard(number, 3))
    (file,) = merge_runs([tmp_path / f"shard {number}" for number in (3, 1, 2)], tmp_path / "merged")
    merged = Counts.load(file)
    assert same(merged, expected)
    assert merged.provenance == expected.provenance
    assert merged.provenance[LEFT_OUT] == ["row 1", "row 10", "row 5", "row 9"]


def test_a_fault_that_every_row_meets_stays_a_traceback(lens, tmp_path):
    samples, problems = corpus(tmp_path, {1: "a ~", 2: "~"}, 0)
    with raising(lens, error=KeyError), pytest.raises(KeyError, match="no such thing") as caught:
        count_domain(lens, samples, problems=problems)
    assert caught.value.__notes__[0].startswith(
        "no sample of common could be read; see the problems of its rows. The fi"
    )
    assert any(entry.name == "hook" for entry in caught.traceback)


class NotFinite(MMNeuronError, ArithmeticError):
    """As a run is ended whose activations are not finite."""


OURS = [
    KeyboardInterrupt, MemoryError, torch.OutOfMemoryError, ServerUnreachable, StorageFailed, NotFinite, OSError,
    FloatingPointError,
]  # fmt: skip


@pytest.mark.parametrize("error", OURS)
def test_what_is_not_about_a_row_ends_the_run(lens, tmp_path, error):
    samples, problems = corpus(tmp_path, {3: "a ~"}, 5)
    with raising(lens, error=error) as tried, pytest.raises(error):
        count_domain(lens, samples, problems=problems)
    assert (len(problems), len(tried)) == (0, 1)


@pytest.mark.parametrize(
    "text", ["CUDA error: device-side assert triggered", "MPS backend out of memory", "can't allocate"]
)
def test_a_device_in_trouble_is_not_about_a_row(text):
    def work(items):
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        attributed([1, 2], work, LeftOut(RecordProblems(Path())), lambda _: read_nothing("x"))


def test_what_rows_raise_only_together_is_not_about_a_row():
    def work(items):
        if {2, 3} <= set(items):
            raise IndexError("together")

    problems = RecordProblems(Path())
    with pytest.raises(IndexError, match="together"):
        attributed([1, 2, 3, 4], work, LeftOut(problems), lambda _: read_nothing("x"))
    assert not len(problems)


def test_an_undisturbed_batch_is_worked_on_once():
    calls = []
    items = list(range(5))
    found = attributed(items, lambda some: calls.append(list(some)) or len(some), LeftOut(), lambda one: one)
    assert (found, calls) == ((5, items), [items])


@pytest.mark.parametrize("refused", [{0}, {6}, {3, 4}, {0, 1, 2, 3, 4, 5, 6}, {1, 5}])
def test_halves_find_those_that_fail_alone(refused):
    calls, items = [], list(range(7))
    samples = [replace(read_nothing("x"), id=str(item)) for item in items]

    def work(some):
        calls.append(list(some))
        if refused & set(some):
            raise ValueError(f"bad {some}")
        return sum(some)

    problems = RecordProblems(Path("corpus"))
    result, kept = attributed(items, work, LeftOut(problems), samples.__getitem__)
    assert kept == [item for item in items if item not in refused]
    assert result == (sum(kept) if kept else None)
    assert [str(one) for one in problems] == [
        f"corpus, common question {item}: the model cannot run it (ValueError: bad [{item}]); write it otherwise, or "
        "remove the row."
        for item in sorted(refused)
    ]


def test_without_problems_the_first_raises_by_its_name(lens, tmp_path):
    samples, _ = corpus(tmp_path, {2: "</s>", 3: "why " * 600}, 3)
    with pytest.raises(InvalidValue, match=r"^question 'row 2' of common: question '</s>' holds '</s>'"):
        count_domain(lens, samples)
    with pytest.raises(InvalidValue, match=r"^question 'row 3' of common: the prompt takes"):
        count_domain(lens, [one for one in samples if one.id != "row 2"])
    with raising(lens, "y"), pytest.raises(IndexError, match="no such thing"):
        count_domain(lens, [one for one in samples if one.question.startswith("why")][-1:])


def test_kept_pieces_of_any_stage_name_them_again(lens, tmp_path):
    samples, first = corpus(tmp_path, {1: "a ~", 6: "why " * 600}, 6)
    keeper, problems = Memory(), read_folder(tmp_path)[1]
    with raising(lens) as tried:
        found = mean_activations(lens, {"common": samples}, batch_size=4, keeper=keeper, problems=first)
        failed = len(tried)
        again = mean_activations(lens, {"common": samples}, batch_size=4, keeper=keeper, problems=problems)
    assert len(tried) == failed
    assert [one.line for one in sorted(problems, key=lambda one: one.line)] == [1, 6]
    assert {one.line for one in first} == {1, 6}
    assert all(torch.equal(found.values[site], again.values[site]) for site in found.values)
