"""A question is text: what a tokenizer would read as a control token is refused, lines of `<image>` are its images."""

from __future__ import annotations

import copy
from dataclasses import replace
from random import Random

import pytest
from conftest import tiny_lens
from drawn_corpus import row, write_images, write_rows
from refused import LENSES, corpus, lens_with_words, read_nothing, same

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.corpora.prompts import without_image_lines
from mmneuron_lens.corpora.token_count import TokenCount
from mmneuron_lens.experiments.count import count_domain

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


@pytest.fixture(params=LENSES)
def any_lens(request) -> tuple[str, Lens]:
    return request.param, lens_with_words(request.param)


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
