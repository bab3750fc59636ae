"""What a run's value depends on: every input, setting and weight; what changed is told, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pictures, tiny_lens
from drawn_corpus import files_of, row, write_corpus, write_images, write_rows
from PIL import Image
from test_metrics_lingo_judge import tiny_judge
from tiny_models import changed_in_the_middle, checkpoint, saved_by_torch, saved_by_transformers

from mmneuron_lens import Lens, ablate, deviate, identify, load_corpus
from mmneuron_lens.artifacts.answers import Answers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics import LingoJudge
from mmneuron_lens.runs.answer import score_stage
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.keys import Key, StoreConflict
from mmneuron_lens.runs.pipeline import run_model
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.questions import corpus_questions
from mmneuron_lens.runs.rows import KeptRows
from mmneuron_lens.runs.store import Store


@pytest.fixture(scope="module")
def lens() -> Lens:
    return tiny_lens("llava_next")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two domains, four images each, two questions an image."""
    return load_corpus(write_corpus(tmp_path_factory.mktemp("corpus"), images=4))


def counted(lens: Lens, samples: Sequence[Sample], out: Path, *, again: bool = False, **settings: Any) -> Counts:
    """The counts of samples of one domain in a run. again: whether what is there may be replaced."""
    (found,) = count_stage(lens, {samples[0].domain: samples}, Store(out, replace=again), **settings).values()
    assert found is not None
    return found


def refused(out: Path, work: Any, *phrases: str) -> None:
    """The work is refused in one line that names every difference, and no byte of the run changes."""
    before = files_of(out)
    with pytest.raises(StoreConflict) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text
    assert text.count(" there and ") == len(phrases), text
    for phrase in phrases:
        assert phrase in text
    assert "--out" in text
    assert "--replace" in text
    assert files_of(out) == before


# --- inputs ---


def test_another_second_frame_is_another_question(lens: Lens, tmp_path: Path) -> None:
    write_images(tmp_path, "auto_driving", 4)
    names = [f"images/auto_driving{number}.png" for number in range(4)]
    rows = [row("auto_driving", number, image=None, images=names[number : number + 2]) for number in (0, 2)]
    samples, out = load_corpus(write_rows(tmp_path, rows)).by_domain()["auto_driving"], tmp_path / "run"
    first = counted(lens, samples, out)
    assert counted(lens, samples, out).samples == first.samples == 2
    # Another picture of the same size, in the same file.
    with Image.open(tmp_path / names[3]) as old:
        size = (old.height, old.width)
    pictures(size, seed=9)[0].save(tmp_path / names[3])
    refused(out, lambda: counted(lens, samples, out), "corpus sha256 is ")
    second = counted(lens, samples, out, again=True)
    assert not torch.equal(second.active["llm.mlp.act"], first.active["llm.mlp.act"])
    fresh = counted(lens, samples, tmp_path / "fresh")
    assert torch.equal(second.active["llm.mlp.act"], fresh.active["llm.mlp.act"])
    assert files_of(out) == files_of(tmp_path / "fresh")


CHANGES: dict[str, Any] = {
    "a question": lambda one: replace(one, question="Is it blue?"),
    "an answer": lambda one: replace(one, answers=("no",)),
    "options": lambda one: replace(one, options=("yes", "no")),
    "the frames' order": lambda one: replace(one, images=one.images[::-1]),
    "an id": lambda one: replace(one, id="another"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_question_is_made_of_counts(lens: Lens, tmp_path: Path, change: str) -> None:
    write_images(tmp_path, "common", 2)
    files = tuple(tmp_path / "images" / f"common{number}.png" for number in range(2))
    sample = Sample("1", "common", files, "Is it red?", ("yes",))
    counted(lens, [sample], tmp_path / "run")
    refused(tmp_path / "run", lambda: counted(lens, [CHANGES[change](sample)], tmp_path / "run"), "corpus sha256 is ")


def test_the_same_questions_in_another_folder_and_order_are_the_same(lens: Lens, corpus, tmp_path: Path) -> None:
    counted(lens, corpus.by_domain()["common"], tmp_path / "run", corpus="mine")
    before = files_of(tmp_path / "run")
    shutil.copytree(corpus.folder, tmp_path / "elsewhere")
    samples = load_corpus(tmp_path / "elsewhere").by_domain()["common"]
    said: list[str] = []
    count_stage(lens, {"common": samples[::-1]}, Store(tmp_path / "run", say=said.append), corpus="mine")
    assert [line.partition(":")[0] for line in said] == ["already done"]
    assert files_of(tmp_path / "run") == before


# --- settings and models ---


def test_counts_of_other_settings_are_refused_and_made_again_where_asked(corpus, tmp_path: Path) -> None:
    folder, out = checkpoint("llava_next", tmp_path / "checkpoint-500"), tmp_path / "run"
    lens, samples = Lens(folder), corpus.by_domain()["common"]
    counted(lens, samples, out)
    whole = files_of(out)
    fewer = samples[:4]
    questions = "corpus questions is 8 there and 4 here", "corpus sha256 is "
    refused(out, lambda: counted(lens, fewer, out), *questions)
    half = Lens(folder, dtype="bfloat16")
    refused(out, lambda: counted(half, samples, out), 'dtype is "float32" there and "bfloat16" here', "fingerprint is ")
    refused(out, lambda: counted(lens, samples, out, batch_size=2), "batch size is 32 there and 2 here")
    refused(out, lambda: counted(lens, samples, out, exact=True), "packing is ")
    refused(out, lambda: counted(lens, samples, out, prompt="evaluation"), "prompt is ")
    made = counted(lens, fewer, out, again=True)
    assert made.samples == 4
    assert files_of(out) != whole
    counted(lens, samples, out, again=True)
    assert files_of(out) == whole


def test_another_checkpoint_whose_folder_has_the_same_last_name_is_refused(corpus, tmp_path: Path) -> None:
    first = checkpoint("llava_next", tmp_path / "first" / "checkpoint-500")
    other = checkpoint("llava_next", tmp_path / "other" / "checkpoint-500")
    out, samples = tmp_path / "run", corpus.by_domain()["common"]
    counted(Lens(first), samples, out)
    # As long as it is the same model it is the same value, wherever its folder is.
    before = files_of(out)
    counted(Lens(other), samples, out)
    assert files_of(out) == before
    trained = Lens(other)
    changed_in_the_middle(trained)
    saved_by_torch(trained, other)
    refused(out, lambda: counted(Lens(other), samples, out), "fingerprint is ")


@pytest.mark.parametrize("save", [saved_by_torch, saved_by_transformers])
def test_a_checkpoint_retrained_in_place_does_not_get_the_old_counts(corpus, tmp_path: Path, save: Any) -> None:
    """Whatever the format of its file; how large it is does not count."""
    folder, out, samples = checkpoint("llava_next", tmp_path / "mine"), tmp_path / "run", corpus.by_domain()["common"]
    save(Lens(folder), folder)
    counted(Lens(folder), samples, out)
    counted(Lens(folder), samples, out)
    trained = Lens(folder)
    changed_in_the_middle(trained)
    save(trained, folder)
    refused(out, lambda: counted(Lens(folder), samples, out), "fingerprint is ")
    assert counted(Lens(folder), samples, out, again=True).provenance["fingerprint"] == trained.model.fingerprint


def test_a_selection_of_other_counts_or_another_rule_is_refused(lens: Lens, corpus, tmp_path: Path) -> None:
    out = tmp_path / "run"
    identify(lens, corpus, out=out, permutations=2)
    identify(lens, corpus, out=out, permutations=2)
    shared = {"out": out, "permutations": 2}
    refused(out, lambda: identify(lens, corpus, fraction=0.05, **shared), "fraction is 0.01 there and 0.05 here")
    refused(out, lambda: identify(lens, corpus, out=out, permutations=3), "permutations is 2 there and 3 here")
    # The same rule on counts that were made again of less.
    less = replace(corpus, samples=corpus.samples[2:])
    counted(lens, less.by_domain()["common"], out, again=True, corpus=corpus.name)
    refused(out, lambda: identify(lens, less, **shared), "counts common is ")


def test_domains_of_like_names_are_counted_side_by_side(lens: Lens, corpus, tmp_path: Path) -> None:
    names = ("road/signs", "road--signs", "Roads", "roads", "a+b", "a/b", "con", "..", "x" * 300)
    samples = corpus.by_domain()["common"]
    parts = [samples[number % 4 :][:2] for number in range(len(names))]
    asked = {name: [replace(one, domain=name) for one in some] for name, some in zip(names, parts, strict=True)}
    made = count_stage(lens, asked, Store(tmp_path / "run"))
    assert len(files_of(tmp_path / "run")) == len(names)
    for name in names:
        found = Counts.load(file_of(tmp_path / "run", "counts", lens.name, name))
        assert (found.domain, found.provenance["corpus"]) == (name, made[name].provenance["corpus"])
    assert {file.parent for file in (tmp_path / "run" / "counts").rglob("*.safetensors")} == {
        file_of(tmp_path / "run", "counts", lens.name, "x").parent
    }


# --- answers ---


@pytest.fixture(scope="module")
def selections(lens: Lens, corpus):
    """Two selections: the neurons of one are more than those of the other."""
    found = identify(lens, corpus, permutations=2)
    return found.selection, found.wider


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each generation gave."""
    counts: list[int] = []
    generate = Lens.generate

    def counting(self: Lens, *arguments: Any, **settings: Any) -> Any:
        out = generate(self, *arguments, **settings)
        counts.append(sum(len(one.text) for one in (out if isinstance(out, list) else [out])))
        return out

    monkeypatch.setattr(Lens, "generate", counting)
    return counts


ASKED: dict[str, Any] = {"random_draws": 1, "max_new_tokens": 2}
ALL_ANSWERS = 2 * 8 * 3


def test_answers_are_not_given_again_in_batches_of_another_size(lens, corpus, selections, given, tmp_path) -> None:
    first = ablate(lens, selections[0], corpus, batch_size=3, out=tmp_path, **ASKED)
    assert sum(given) == ALL_ANSWERS
    again = ablate(lens, selections[0], corpus, batch_size=2, out=tmp_path, **ASKED)
    assert sum(given) == ALL_ANSWERS
    assert list(again.answers) == list(first.answers)


@pytest.mark.parametrize("before", [1, 2, 5])
def test_answers_of_a_run_that_was_stopped_are_kept_whatever_the_batch(
    lens, corpus, selections, given, tmp_path, monkeypatch, before
) -> None:
    whole = ablate(lens, selections[0], corpus, batch_size=3, out=tmp_path / "whole", **ASKED)
    given.clear()
    counting = Lens.generate

    def stopping(self: Lens, *arguments: Any, **settings: Any) -> Any:
        if len(given) == before:
            raise KeyboardInterrupt
        return counting(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Lens, "generate", stopping)
        with pytest.raises(KeyboardInterrupt):
            # So small that a stop leaves a part of a domain answered.
            ablate(lens, selections[0], corpus, batch_size=1, out=tmp_path / "run", **ASKED)
    done = sum(given)
    assert 0 < done < ALL_ANSWERS
    found = ablate(lens, selections[0], corpus, batch_size=3, out=tmp_path / "run", **ASKED)
    assert sum(given) == ALL_ANSWERS
    assert list(found.answers) == list(whole.answers)
    assert list(files_of(tmp_path / "run")) == list(files_of(tmp_path / "whole"))


def test_more_questions_and_conditions_cost_only_their_own_answers(lens, corpus, selections, given, tmp_path) -> None:
    ablate(lens, selections[0], corpus[:10], out=tmp_path, **ASKED)
    done = sum(given)
    refused(tmp_path, lambda: ablate(lens, selections[0], corpus, out=tmp_path, **ASKED), "questions medical is ")
    ablate(lens, selections[0], corpus, out=tmp_path, replace=True, **ASKED)
    assert sum(given) == ALL_ANSWERS > done > 0
    ablate(lens, selections[0], corpus, out=tmp_path, replace=True, **{**ASKED, "random_draws": 2})
    assert sum(given) == ALL_ANSWERS + 16


def test_an_image_that_cannot_be_read_does_not_cost_the_others_twice(lens, selections, given, tmp_path) -> None:
    folder = write_corpus(tmp_path / "corpus", images=4)
    image = folder / "images" / "common1.png"
    image.write_bytes(image.read_bytes()[:-2000])
    first = ablate(lens, selections[0], load_corpus(folder), out=tmp_path / "run", **ASKED)
    done = sum(given)
    assert done == len(first.answers) == ALL_ANSWERS - 2 * 3
    ablate(lens, selections[0], load_corpus(folder), out=tmp_path / "run", replace=True, **{**ASKED, "random_draws": 2})
    assert sum(given) == done + 14


def test_a_damaged_part_of_the_answers_is_given_again(lens, corpus, selections, given, tmp_path, monkeypatch) -> None:
    whole = ablate(lens, selections[0], corpus, out=tmp_path / "whole", **ASKED)
    given.clear()
    save = Answers.save
    with monkeypatch.context() as patch:
        # Everything is answered, and the process killed before the answers are together.
        patch.setattr(Answers, "save", lambda self, path, key=None: 1 / 0 if key else save(self, path, key))
        with pytest.raises(ZeroDivisionError):
            ablate(lens, selections[0], corpus, out=tmp_path / "run", **ASKED)
    (folder,) = (tmp_path / "run" / "answers").glob("*.pieces")
    files = sorted(folder.glob("*.jsonl"))
    # A batch of a domain each, with all its conditions.
    assert (len(files), sum(given)) == (2, ALL_ANSWERS)
    files[1].write_bytes(files[1].read_bytes().replace(b'"answer":"', b'"answer":"!', 1))
    damaged, said = files[1].read_bytes(), list[str]()
    value = f"answers/{folder.name.removesuffix('.pieces')}.jsonl"
    rows = KeptRows(Store(tmp_path / "run", say=said.append).pieces(Key(value, {})))
    assert files[1].with_suffix(".damaged").read_bytes() == damaged
    (line,) = said
    assert line.startswith(f"{files[1]}: is damaged")
    assert line.endswith("It was moved aside, and is made again.")
    assert sum(rows.get(one.digest) == one for one in whole.answers) == ALL_ANSWERS // 2
    found = ablate(lens, selections[0], corpus, out=tmp_path / "run", **ASKED)
    assert sum(given) == ALL_ANSWERS + ALL_ANSWERS // 2
    assert list(found.answers) == list(whole.answers)
    assert not folder.exists()


def test_another_selection_is_another_value_wherever_it_came_from(lens, corpus, selections, tmp_path) -> None:
    """Also where the run holds no file of it."""
    first, other = selections
    assert not torch.equal(first.masks["llm.mlp.act"], other.masks["llm.mlp.act"])
    for number, call in enumerate((ablate, deviate)):
        out, settings = tmp_path / str(number), ASKED if call is ablate else {"random_draws": 1}
        call(lens, first, corpus, out=out, **settings)
        refused(out, lambda: call(lens, other, corpus, out=out, **settings), "neurons sha256 is ")  # noqa: B023


# --- judges and paths ---


def test_another_judge_is_another_value(tmp_path: Path) -> None:
    folder, out = tiny_judge(tmp_path / "judge"), tmp_path / "run"

    def scored(judge: Path | None = folder) -> None:
        given = None if judge is None else str(judge)
        score_stage(Answers(()), {}, {}, Store(out), model="m", answers_id="", judge=given)

    scored()
    scored()
    (content,) = files_of(out).values()
    assert str(tmp_path).encode() not in content
    shutil.copytree(folder, tmp_path / "elsewhere" / "judge")
    scored(tmp_path / "elsewhere" / "judge")
    refused(out, lambda: scored(None), "judge is ")
    other = LingoJudge.load(folder)
    next(other.model.parameters()).data.view(-1)[1] += 1
    other.model.save_pretrained(tmp_path / "elsewhere" / "judge")
    refused(out, lambda: scored(tmp_path / "elsewhere" / "judge"), "judge sha256 is ")


def test_no_path_of_the_machine_is_in_any_file_of_a_run(tmp_path: Path) -> None:
    home = tmp_path / "a-home-of-somebody"
    lens = Lens(checkpoint("llava_next", home / "models" / "mine"))
    corpus = load_corpus(write_corpus(home / "corpora" / "drawn-by-me", images=4))
    out = home / "runs" / "paper"
    plan = Plan(
        identification_images=3, evaluation_images=1, random_draws=1, ablation_draws=1, permutations=2, off="mean",
        generation={"max_new_tokens": 2},
    )  # fmt: skip
    run_model(lens, corpus_questions(corpus, plan), plan, Store(out))
    found = files_of(out)
    kinds = {name.partition("/")[0] for name in found}
    assert kinds >= {"counts", "selection", "controls", "means", "answers", "deviations", "entropies", "embeddings"}
    for name, content in found.items():
        for part in (home.name, str(tmp_path), "drawn-by-me/", json.dumps(str(home))[1:-1]):
            assert part.encode() not in content, name
            assert part not in name
    # What it does name.
    counts = Counts.load(file_of(out, "counts", "mine", "common"))
    assert (counts.model, counts.provenance["corpus"]["name"]) == ("mine", "drawn-by-me")
