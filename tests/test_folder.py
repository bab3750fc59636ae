"""A folder as a corpus: good rows come back whole, every bad one is named, counted and skipped."""

from __future__ import annotations

import pytest
from drawn_corpus import row, write_corpus, write_images, write_rows
from PIL import Image

from mmneuron_lens.corpora.folder import CorpusError, by_domain, image_sizes, open_images, read_folder, some_of
from mmneuron_lens.corpora.sample import DOMAINS


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "corpus", "common", 2)
    return tmp_path / "corpus"


def test_a_good_row_comes_back_whole(folder):
    rows = [
        row("common", 0, "What?", answer=["cat", "a cat"], id="first", kind="name"),
        row("common", 0, "Which?", answer="b", options=["dog", "cat"], image=None, images=["images/common1.png"] * 2),
        row("common", 0, id=7),
    ]
    samples, problems = read_folder(write_rows(folder, rows))
    first, second, third = samples
    assert (first.id, first.domain, first.question, first.kind) == ("first", "common", "What?", "name")
    assert first.answers == ("cat", "a cat")
    assert [path.name for path in first.images] == ["common0.png"]
    assert (second.id, second.options, second.answers) == ("line-2", ("dog", "cat"), ("B",))
    assert [path.name for path in second.images] == ["common1.png"] * 2
    assert third.id == "7"
    assert (len(problems), problems.rows, str(problems)) == (0, 3, "0 of 3 rows skipped.")


BAD = {
    "cut JSON": ('{"domain": "common"', "not JSON (", '{"domain": "common"'),
    "not UTF-8": (b'{"domain": "\xff"}', "not JSON (", "in UTF-8"),
    "nested without end": ("[" * 100_000, "not JSON (", "write one object"),
    "no object": ("[1, 2]", "[1, 2] is no object"),
    "no question": (
        row("common", 0, question=None),
        "no question in ",
        "a row needs domain, image, question and answer",
    ),
    "no image": (row("common", 0, image=None), "no image in "),
    "no domain, no answer": (row("common", 0, domain=None, answer=None), "no domain, answer in "),
    "empty domain": (row("common", 0, domain=""), "domain '' is empty; fill it in"),
    "white domain": (row("common", 0, domain=" \t"), "is empty; fill it in"),
    "domain of another type": (row("common", 0, domain=["common"]), "domain ['common'] is list, not text"),
    "domain as a number": (row("common", 0, domain=3), "domain 3 is int, not text; put it in quotation marks"),
    "domain of two lines": (row("common", 0, domain="a\nb"), "domain 'a\\nb' holds a character that cannot be printed"),
    "missing image": (row("common", 9), "image 'images/common9.png' is missing; add the file"),
    "image outside": (row("common", 0, image="../outside.png"), "image '../outside.png' lies outside the corpus"),
    "absolute image": (row("common", 0, image="/etc/hostname"), "image '/etc/hostname' lies outside the corpus"),
    "impossible image": (row("common", 0, image="a\0b"), "is no path", "relative to the folder"),
    "image of another type": (row("common", 0, image=3), "image 3 is int, not text; put it in quotation marks"),
    "folder as image": (row("common", 0, image="images"), "image 'images' is missing"),
    "no images": (row("common", 0, image=None, images=[]), "images [] is no list of paths; give one path or more"),
    "image and images": (row("common", 0, images=["images/common0.png"]), "both image 'images/common0.png' and images"),
    "empty question": (row("common", 0, question="  "), "question '  ' is empty; fill it in"),
    "question of another type": (row("common", 0, question={"a": 1}), "question {'a': 1} is dict, not text"),
    "half a character": (row("common", 0, question="\ud800?"), "question '\\ud800?' holds half a character"),
    "number as answer": (row("common", 0, answer=3), "answer 3 is int, not text; put it in quotation marks"),
    "no accepted answer": (row("common", 0, answer=[]), "answer [] is empty; give a text, or a list"),
    "empty answer": (row("common", 0, answer=["yes", ""]), "answer '' is empty"),
    "options without a letter": (
        row("common", 0, options=["heart", "lung"], answer="heart"),
        "answer 'heart' is no letter of its options; give one of A, B.",
    ),
    "letter beyond the options": (row("common", 0, options=["heart", "lung"], answer="C"), "give one of A, B."),
    "one option": (row("common", 0, options=["heart"], answer="A"), "options ['heart'] are not 2 to 26 texts"),
    "duplicate id": (row("common", 0, id="good"), "id 'good' is that of line 1 too; give each its own."),
    "id of another type": (row("common", 0, id=1.5), "id 1.5 is float, not text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_counted_and_skipped(folder, tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    bad, *expected = BAD[name]
    samples, problems = read_folder(write_rows(folder, [row("common", 0, id="good"), bad, row("common", 1)]))
    assert [sample.id for sample in samples] == ["good", "line-3"]
    assert (len(problems), problems.rows) == (1, 3)
    (problem,) = problems
    assert (problem.file, problem.line) == (folder / "questions.jsonl", 2)
    for part in expected:
        assert part in problem.says
    assert str(problems).startswith("1 of 3 rows skipped:\n")
    assert f"{folder / 'questions.jsonl'}, line 2: " in str(problems)
    assert "\n" not in str(problem)


def test_blank_lines_and_a_byte_order_mark_are_no_rows(folder):
    write_rows(
        folder, ["\ufeff" + '{"domain": "common", "image": "images/common0.png", "question": "a", "answer": "b"}']
    )
    with open(folder / "questions.jsonl", "ab") as lines:
        lines.write(b"\n  \n")
    samples, problems = read_folder(folder)
    assert (len(samples), len(problems), problems.rows) == (1, 0, 1)


def test_all_domains_are_read_or_only_those_that_are_named(folder):
    write_rows(folder, [row("common", 0, domain="food"), row("common", 1), row("common", 0, domain="日本 (1)")])
    samples, problems = read_folder(folder)
    assert (list(by_domain(samples)), len(problems)) == (["common", "food", "日本 (1)"], 0)
    some, problems = read_folder(folder, (*DOMAINS, "food"))
    assert (some, len(problems), problems.rows) == (samples[:2], 0, 3)


def test_domains_that_look_alike_are_two_and_said(folder):
    names = ["photos", "Photos", "photos ", "photo s", "scans"]
    _, problems = read_folder(write_rows(folder, [row("common", 0, domain=name) for name in names]))
    note = "domains 'photos', 'Photos', 'photos ' differ in capitals or spaces alone, and are 3 domains."
    assert (problems.notes, str(problems)) == ([note], f"0 of 5 rows skipped.\n{note}")


def test_an_image_that_turns_out_truncated_is_named_when_it_is_decoded(folder):
    file = folder / "images" / "common1.png"
    file.write_bytes(file.read_bytes()[:-3000])
    samples, problems = read_folder(write_rows(folder, [row("common", 0), row("common", 1, id="cut")]))
    assert len(problems) == 0
    assert image_sizes(samples[1], problems) == [(30, 64)]
    assert [image.size for image in open_images(samples[0], problems) or ()] == [(56, 40)]
    assert open_images(samples[1], problems) is None
    assert open_images(samples[1], problems) is None
    (problem,) = problems
    assert problem.line == 2
    assert "image cannot be decoded: " in problem.says
    assert "common1.png: not an image that can be read" in problem.says
    assert "Replace the file, or remove the row." in problem.says
    with pytest.raises(ValueError, match=r"common1\.png: not an image that can be read"):
        open_images(samples[1])


def test_a_file_that_is_no_image_is_named_when_its_size_is_asked(folder):
    (folder / "images" / "common1.png").write_text("no picture")
    samples, problems = read_folder(write_rows(folder, [row("common", 1)]))
    assert image_sizes(samples[0], problems) is None
    assert "common1.png: not an image that can be read" in str(problems)


def test_what_is_no_corpus_says_what_to_do(folder, tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere is not a folder; write one JSON object a line"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"corpus has no questions\.jsonl; write one JSON object a line"):
        read_folder(folder)
    with pytest.raises(CorpusError, match=r"no good row among 1\. The first: .*line 1: domain '' is empty"):
        read_folder(write_rows(folder, [row("common", 0, domain="")]))


def test_a_part_is_of_whole_images_and_a_larger_part_holds_it(tmp_path):
    samples, _ = read_folder(write_corpus(tmp_path, images=4))
    part, more = some_of(samples, 2, 1), some_of(samples, 3, 1)
    assert len(part) == 4
    assert set(part) < set(more)
    assert part == some_of(samples, 2, 1)
    rest = some_of(samples, skip_images=2)
    assert len(rest) == 8
    assert not {sample.images for sample in rest} & {sample.images for sample in part}
    assert some_of(samples, questions_per_image=9) == samples
