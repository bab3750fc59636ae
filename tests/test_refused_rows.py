"""Rows that only encoding or the forward can refuse: named with their line, left out, and the others count as alone."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import pictures, tiny_lens
from drawn_corpus import QUESTIONS, files_of, row, write_images, write_rows
from typer.testing import CliRunner

from interventions import count_active
from interventions.errors import InvalidValue, MMNeuronError, ServerUnreachable, StorageFailed
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.counts import LEFT_OUT, Counts
from mmneuron_lens.batching.attribution import LeftOut, attributed
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Memory, Shard
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.cli import app
from mmneuron_lens.corpora.folder import Problems, by_domain, read_folder
from mmneuron_lens.corpora.prompts import without_image_lines
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.token_count import TokenCount
from mmneuron_lens.experiments.ablate import ablate
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.deviate import deviate
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.experiments.entropy import read_entropy
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.runs.answer import answer_stage
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.merging import merge_runs
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.limits import positions_of
from mmneuron_lens.wire.encode import encode as plainly

LENSES = ("llava_next", "instructblip", "llava", "blip2")

CONTROL = "which this model's tokenizer reads as a control token; write it otherwise, or remove the row."

REFUSED = {
    "a placeholder within": ("Is the <image> red?", "question 'Is the <image> red?' holds '<image>', " + CONTROL),
    "a placeholder before": ("<image> is it red?", f"holds '<image>', {CONTROL}"),
    "a placeholder behind": ("What is this: <image>", f"holds '<image>', {CONTROL}"),
    "more placeholders than images": ("<image>\n<image>\nIs it red?", "begins or ends with 2 '<image>' for 1 images"),
    "a placeholder alone": ("<image>", "is empty without '<image>'; write one, or remove the row."),
    "placeholder lines alone": ("<image>\n \n", "is empty without '<image>'"),
    "the end of a sequence": ("Is it </s> red?", f"question 'Is it </s> red?' holds '</s>', {CONTROL}"),
    "the beginning of one": ("<s>Is it red?", f"holds '<s>', {CONTROL}"),
    "padding": ("Is it red?<pad><pad>", f"holds '<pad>', {CONTROL}"),
    "the unknown token": ("a <unk> car", f"holds '<unk>', {CONTROL}"),
    "control tokens alone": ("<s></s><pad>", f"holds '<s>', {CONTROL}"),
    "600 words": ("why " * 600, "the prompt takes 24"),
    "100,000 characters": ("w" * 100_000, "the prompt takes 100"),
}
"""Questions that no tiny model can be asked, and what is said."""

ASKED = (
    "<image>\nIs it red?", "Is it red?\n<image>", "<image>\r\nIs it red?", " <image> \nIs it red?\n<image>\n",
)  # fmt: skip
"""`Is it red?` as LLaVA's conversation files write it; the last is about two images."""

ODD = (
    "😀 how many?",
    "é\u0301\u200b?",
    "< image >",
    "<images>",
    "[IMG] </ s>",
    "a\x00b\x07",
    "\ufffd\u202e",
    "<b>red</b>?",
    " ",
)


def cases(name: str) -> dict[str, tuple[str, str]]:
    """What a tiny lens refuses: `REFUSED`, and what belongs to its Q-Former or to words added to its tokenizers."""
    found = dict(REFUSED, **{"a word without an embedding": ("is it a giraffe?", "token 'giraffe' has the id 101")})
    if name == "instructblip":
        found["a word that the Q-Former does not know"] = (
            "is it a zebra?",
            "token 'zebra' has the id 101, and the embe",
        )
        found["a question too long for the Q-Former"] = (
            "why " * 40,
            "the prompt takes 160 positions, and the Q-Former",
        )
    return found


@pytest.fixture(params=LENSES)
def any_lens(request) -> tuple[str, Lens]:
    return request.param, lens_with_words(request.param)


def lens_with_words(name: str) -> Lens:
    """A tiny lens whose tokenizers know a word for which there is no embedding."""
    lens = tiny_lens(name)
    processor = copy.deepcopy(lens.processor)
    processor.tokenizer.add_tokens(["giraffe"])
    if name == "instructblip":
        processor.qformer_tokenizer.add_tokens(["zebra"])
    return Lens.wrap(lens.module, processor)


def corpus(folder: Path, bad: dict[int, str], questions: int = 14, domain: str = "common"):
    """A corpus of good rows with bad ones at these lines (from 1); images are shared by four rows, good and bad."""
    write_images(folder, domain, 4)
    good, rows = iter(range(questions)), []
    while len(rows) < questions + len(bad):
        number = len(rows)
        question = bad.get(number + 1) or f"{QUESTIONS[next(good) % 3]}{'?' * (number % 4)}"
        rows.append(row(domain, number % 4, question, id=f"row {number + 1}"))
    return read_folder(write_rows(folder, rows))


def same(one: Counts, other: Counts) -> bool:
    return one.samples == other.samples and all(
        torch.equal(one.active[site], other.active[site]) and torch.equal(one.tokens[site], other.tokens[site])
        for site in one.active.keys() | other.active.keys()
    )


def without(samples, bad):
    return [one for one in samples if one.id not in {f"row {line}" for line in bad}]


@contextmanager
def raising(lens: Lens, character: str = "~", error: type[BaseException] = IndexError):
    """A fault in the model: the forward raises for a prompt with this character."""
    (number,) = lens.processor.tokenizer.convert_tokens_to_ids([character])
    seen = []

    def hook(_module, given):
        if given[0].device.type != "meta" and type(given[0]) is torch.Tensor and (given[0] == number).any():
            seen.append(len(given[0]))
            raise error("no such thing in /some/folder/of/this/machine.py")

    handle = lens.module.get_input_embeddings().register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


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


@pytest.mark.parametrize("question", ODD)
def test_odd_texts_are_text(any_lens, tmp_path, question):
    _, lens = any_lens
    samples, problems = corpus(tmp_path, {3: question} if question.strip() else {}, 4)
    counts = count_domain(lens, samples, problems=problems)
    assert (len(problems), counts.samples) == (0, len(samples))


def test_lines_of_placeholders_are_the_images(any_lens, tmp_path):
    _, lens = any_lens
    write_images(tmp_path, "common", 2)
    two = {"image": None, "images": ["images/common0.png", "images/common1.png"]}
    rows = [row("common", 0, text, **(two if text.count("<image>") == 2 else {})) for text in ASKED]
    plain = [row("common", 0, "Is it red?", **(two if text.count("<image>") == 2 else {})) for text in ASKED]
    samples, problems = read_folder(write_rows(tmp_path, rows))
    expected, _ = read_folder(write_rows(tmp_path, plain))
    assert same(count_domain(lens, samples, problems=problems), count_domain(lens, expected))
    assert not len(problems)
    for prompt in ("identification", "evaluation"):
        assert [prompt_of(lens, one, prompt) for one in samples] == [prompt_of(lens, one, prompt) for one in expected]
    count = TokenCount(lens.processor.tokenizer, tiny_lens("llava_next").architecture.facts)
    assert [count(one, [(40, 40)]) for one in samples] == [count(one, [(40, 40)]) for one in expected]


@pytest.mark.parametrize(
    ("question", "kept", "count"),
    [
        ("<image>\nWhy?", "Why?", 1),
        ("Why?\n<image>", "Why?", 1),
        ("<image>\n<image>\nWhy?\n\nSo?\n<image>", "Why?\n\nSo?", 3),
        ("<image><image> <image>\nWhy?", "Why?", 3),
        ("<image>", "", 1),
        ("<image>\n\nWhy?", "\nWhy?", 1),
        ("<image> Why?", "<image> Why?", 0),
        ("Why <image>", "Why <image>", 0),
        ("Why\n<image>\nnot?", "Why\n<image>\nnot?", 0),
        ("Why?\n", "Why?\n", 0),
        ("", "", 0),
    ],
)
def test_which_lines_are_placeholders(question, kept, count):
    assert without_image_lines(question) == (kept, count)


def test_ids_of_an_accepted_question_are_those_of_plain_text(any_lens):
    """Oracle: the same tokenizer, told to split special tokens."""
    _, lens = any_lens
    control = lens.processor.tokenizer.all_special_tokens
    sample = read_nothing("x")
    draw = Random(0)
    pieces = [*control, "<", ">", "/s", "s", "image", "\n", " red", "[UNK]", "|", "é"]
    accepted = 0
    for _ in range(300):
        text = "a" + "".join(draw.choices(pieces, k=draw.randrange(1, 5)))
        made = lens.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        plain = lens.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        bare, count = without_image_lines(text)
        try:
            asked = askable(lens, [replace(sample, question=text)], "identification")
        except InvalidValue:
            assert made != plain
            continue
        assert len(asked) == 1
        assert count or made == plain
        assert str(lens.processor.image_token) not in bare
        accepted += 1
    assert 50 < accepted < 250


def read_nothing(question: str):
    from mmneuron_lens import Sample

    return Sample("1", "common", (Path("none.png"),), question, ("yes",))


def test_a_token_that_the_normalizer_makes_is_one_too():
    from tokenizers import AddedToken, normalizers

    lens = tiny_lens("llava_next")
    processor = copy.deepcopy(lens.processor)
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<end>", normalized=True)]})
    processor.tokenizer.add_tokens(["<tool_call>", "pneumonia"])
    lens = Lens.wrap(lens.module, processor)
    for text, token in {"is ＜end＞ it": "<end>", "is <tool_call> it": "<tool_call>"}.items():
        with pytest.raises(InvalidValue, match=f"question '1' of common: question '.*' holds '{token}', which"):
            askable(lens, [read_nothing(text)], "identification")
    # A word that was added is a word.
    assert askable(lens, [read_nothing("pneumonia?")], "identification")


def test_options_are_text_where_they_are_shown(lens, tmp_path):
    write_images(tmp_path, "medical", 1)
    rows = [
        row("medical", 0, "Which?", options=options, answer="A")
        for options in (["heart", "lung"], ["<image>", "lung"], ["heart", "</s>"], ["a", "b"])
    ]
    samples, problems = read_folder(write_rows(tmp_path, rows))
    kept = askable(lens, samples, "evaluation", problems)
    assert [one.id for one in kept] == ["line-1", "line-4"]
    assert [(one.line, one.says.split(",")[0]) for one in problems] == [
        (2, "option '<image>' holds '<image>'"),
        (3, "option '</s>' holds '</s>'"),
    ]
    assert askable(lens, samples, "identification") == samples


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


def selection_of(lens, samples):
    others = [replace(one, domain="medical") for one in samples]
    counts = [count_domain(lens, some) for some in (samples, others[:3])]
    return select(counts, fraction=0.3, percentile=0.6)


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


def test_a_trace_of_one_is_one_line(lens, tmp_path):
    samples, _ = corpus(tmp_path, {1: "</s>", 2: "why " * 600, 3: "<image>\n<image>\nwhy"}, 1)
    for sample, says in zip(samples, ("holds '</s>'", "the prompt takes", "2 '<image>' for 1 images"), strict=False):
        with pytest.raises(InvalidValue, match=says) as caught:
            trace_sample(lens, sample)
        assert str(caught.value).startswith(f"question '{sample.id}' of common: ")
    assert trace_sample(lens, samples[3]).id == "row 4"


def test_an_answer_needs_room_too(lens, tmp_path):
    samples, problems = corpus(tmp_path, {2: "why " * 25}, 3)
    lengths = {one.id: encode(lens, [one], "evaluation")[0].inputs["input_ids"].shape[1] for one in samples}
    selection = selection_of(lens, samples)
    room = 512 - lengths["row 2"]
    assert len(ablate(lens, selection, {"common": samples}, problems=problems, max_new_tokens=room)) == 4 * 5
    assert not len(problems)
    found = ablate(lens, selection, {"common": samples}, problems=problems, max_new_tokens=room + 1)
    assert {one.id for one in found} == {"row 1", "row 3", "row 4"}
    (one,) = problems
    assert one.says == (
        f"the prompt takes {lengths['row 2']} positions and its answer up to {room + 1}, and {lens.name} has 512; "
        "shorten it, or show less."
    )


def test_more_images_than_a_model_has_positions_for(tmp_path):
    lens = tiny_lens("llava")
    write_images(tmp_path, "auto_driving", 40)
    images = [f"images/auto_driving{number}.png" for number in range(40)]
    few = row("auto_driving", 0, image=None, images=images[:3])
    samples, problems = read_folder(
        write_rows(tmp_path, [few, row("auto_driving", 0, "why " * 126, image=None, images=images[:2]), few])
    )
    # Not even one frame fits beside the words of the second.
    counts = count_domain(lens, samples, problems=problems)
    assert (counts.samples, [one.line for one in problems]) == (2, [2])
    # As many frames as fit are shown of forty; side by side they are one image.
    many, problems = read_folder(write_rows(tmp_path, [row("auto_driving", 0, image=None, images=images)]))
    assert count_domain(lens, many, problems=problems).samples == 1
    assert count_domain(lens, many, problems=problems, frames="strip").samples == 1
    with pytest.raises(InvalidValue, match="the prompt takes"):
        encode(lens, many, "identification")


DIRECT = {
    "too long": (
        "w" * 700,
        r"^texts\[1\]: the prompt takes 7\d\d positions, and \w+ has 512; shorten it, or show less\.$",
    ),
    "no embedding": (
        "giraffe",
        r"^texts\[1\]: token 'giraffe' has the id 101, and the embedding of \w+ has 101 rows; w",
    ),
}


@pytest.mark.parametrize("kind", DIRECT)
def test_encoding_names_the_text(any_lens, kind):
    name, lens = any_lens
    text, says = DIRECT[kind]
    images = pictures((32, 32), (32, 40), (40, 32))
    with pytest.raises(InvalidValue, match=says):
        lens.encode(images, ["why", text, "how"])
    alone = says.replace(r"texts\[1\]: ", "")
    with pytest.raises(InvalidValue, match=alone):
        lens.encode(images[:1], text)
    place = r"rows\[1\]: " if lens.architecture.facts["images_in_text"] else r"prompts\[2\]: "
    if lens.architecture.facts["images_in_text"] or name == "instructblip" or name == "blip2":
        with pytest.raises(
            InvalidValue, match=alone.replace("^", f"^{place}").replace(r"\w+ has 512", r"[\w ]+ has 512")
        ):
            lens.pack([([images[0]], ["why", "how"]), ([images[1]], [text, "who"])])


def test_the_q_formers_limits():
    lens = lens_with_words("instructblip")
    images = pictures((32, 32), (32, 40))
    for text, says in {
        "zebra": r"^texts\[1\]: token 'zebra' has the id 101, and the embedding of the Q-Former of \w+ has 101 rows; ",
        "w" * 129: r"^texts\[1\]: the prompt takes 129 positions, and the Q-Former of \w+ has 128; shorten it",
        "is <image> it": r"^texts\[1\]: the text holds '<image>', whose place \w+ chooses itself; leave it out\.$",
    }.items():
        with pytest.raises(InvalidValue, match=says):
            lens.encode(images, ["why", text])
    # All of the Q-Former's positions may be used, beside shorter questions.
    batch = lens.encode(images, ["why", "w" * 128])
    assert lens.run(count_active, batch)


def test_a_prompt_may_fill_all_positions(any_lens):
    _, lens = any_lens
    (image,) = pictures((32, 32))
    facts = lens.architecture.facts
    words = 512 - lens.encode([image], "w").inputs["input_ids"].shape[1] + 1
    if facts["queries"] and "qformer_input_ids" in lens.encode([image], "w").inputs:
        words = 128
    made = plainly(lens.processor, [[image]], [("<image>\n" if facts["images_in_text"] else "") + "w" * words])
    assert lens.encode([image], "w" * words).inputs["input_ids"].shape == made["input_ids"].shape
    if words != 128:
        assert made["input_ids"].shape[1] == 512
    with pytest.raises(InvalidValue, match="the prompt takes"):
        lens.encode([image], "w" * (words + 1))


def test_positions_that_a_rotary_embedding_stretches():
    lens = tiny_lens("llava")
    for given, positions in [
        ({"rope_type": "default", "rope_theta": 1e4}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}, 512),
    ]:
        module = copy.deepcopy(lens.module)
        module.config.get_text_config().rope_parameters = given
        assert positions_of(Lens.wrap(module, lens.processor).model) == positions


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
    file = tmp_path / "run" / "skipped.txt"
    (line,) = said
    assert line == f"1 rows are skipped and named in {file}; the first: {problems.found[0]}"
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
