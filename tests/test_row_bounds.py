"""Rows from outside: their depth, length and names are bounded, and whatever one raises is its own problem."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import polars
import pytest
from PIL import Image
from published_formats.make import write_all

from mmneuron_lens.corpora import docvqa, folder, json_bounds, lingoqa, pmc_vqa, rsvqa, vqav2
from mmneuron_lens.corpora.check import check_corpora, exit_code, problem_lines
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.corpora.json_bounds import DEPTH, LONGEST, TEXT, Bounded, within_bounds
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.records import RawRecord, RecordProblems, good
from mmneuron_lens.corpora.rows import CorpusError, bare, quote
from mmneuron_lens.corpora.sample import Sample

ROOT = Path(__file__).parent.parent

OUT_OF_BOUNDS = {
    "lists in lists": "[" * 60_000 + "]" * 60_000,
    "objects in objects": '{"a":' * 60_000 + "1" + "}" * 60_000,
    "lists in objects": '{"a":[' * 30_000 + "1" + "]}" * 30_000,
    "one too deep": "[" * DEPTH + "]" * DEPTH,
    "many lists": "[" + "[]," * 400_000 + "[]]",
    "many objects": "[" + "{}," * 400_000 + "{}]",
    "many numbers": "[" + "1," * 600_000 + "1]",
    "a long text": '"' + "x" * 1_100_000 + '"',
    "a long text of escapes": '"' + '\\"' * 600_000 + '"',
    "a long number": "1" * 1_100_000,
    "spaces": " " * 1_100_000 + "1",
}
"""Values that are too deep or too long within a record."""


def one_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)
    return path


def own(place: Path, bad: str):
    one_picture(place / "a.png")
    row = '{{"domain": "common", "image": "a.png", "question": "What?", "answer": "it", "id": {}}}'
    spoilt = '{"domain": "common", "image": "a.png", "question": ' + bad + ', "answer": "it"}'
    (place / "questions.jsonl").write_text("\n".join([row.format(1), spoilt, row.format(3)]))
    return read_folder(place)


def of_documents(place: Path, bad: str):
    one_picture(place / "documents" / "a.png")
    row = '{{"questionId": {}, "question": {}, "image": "documents/a.png", "answers": ["it"]}}'
    rows = ",\n".join([row.format(1, '"q"'), row.format(2, bad), row.format(3, '"q"')])
    (place / "val_v1.0.json").write_text(f'{{"info": [{{"a": "]}}"}}], "data": [{rows}], "more": {{}}}}')
    problems = RecordProblems(place)
    return list(docvqa.read(place, "val", problems)), problems


@pytest.mark.parametrize("value", OUT_OF_BOUNDS)
@pytest.mark.parametrize("read", [own, of_documents])
def test_a_row_out_of_bounds_costs_itself_alone(tmp_path, read, value):
    samples, problems = read(tmp_path, OUT_OF_BOUNDS[value])
    assert [sample.id for sample in samples] == ["1", "3"]
    (named,) = problems
    assert (named.line, problems.rows) == (2, 3)
    deep = " in " in value or "deep" in value
    assert (f"nested more than {DEPTH} deep" if deep else f"longer than {LONGEST} characters") in named.says
    assert str(named).isprintable()
    assert len(str(named)) < 600


@pytest.mark.parametrize("read", [own, of_documents])
def test_what_is_within_bounds_is_read(tmp_path, read):
    deep = "[" * (DEPTH - 3) + "]" * (DEPTH - 3)
    samples, problems = read(tmp_path, f'"q", "other": {deep}, "text": "{"[{" * 100_000}"')
    assert [sample.id for sample in samples] == [samples[0].id, samples[1].id, "3"]
    assert not len(problems)
    samples, problems = read(tmp_path, f'"{"x" * TEXT}"')
    assert len(samples) == 3
    samples, problems = read(tmp_path, f'"{"x" * (TEXT + 1)}"')
    assert len(samples) == 2
    assert f"longer than {TEXT} characters; shorten it." in problems.found[0].says


def test_a_deep_record_that_is_looked_up_costs_its_question_alone(tmp_path):
    one_picture(tmp_path / "val2014" / "COCO_val2014_000000000009.jpg")
    deep, told = "[" * 60_000 + "]" * 60_000, '[{"answer": "yes"}]'
    asked = [f'{{"image_id": 9, "question": "Is it?", "question_id": {one}}}' for one in (1, 2)]
    answers = [
        f'{{"image_id": 9, "question_id": {one}, "answer_type": "other", "answers": {some}}}'
        for one, some in ((1, deep), (2, told))
    ]
    for name, key, rows in (
        ("OpenEnded_mscoco_val2014_questions", "questions", asked),
        ("mscoco_val2014_annotations", "annotations", answers),
    ):
        (tmp_path / f"v2_{name}.json").write_text(f'{{"{key}": [{", ".join(rows)}]}}')
    problems = RecordProblems(tmp_path)
    assert [one.id for one in vqav2.read(tmp_path, "val", problems)] == ["2"]
    assert problems.found[0].says.startswith(f"it is nested more than {DEPTH} deep")
    assert problems.rows == 2


def test_a_file_that_never_closes_what_it_opens_says_so(tmp_path):
    one_picture(tmp_path / "documents" / "a.png")
    good = '{"questionId": 1, "question": "q", "image": "documents/a.png", "answers": ["it"]}'
    (tmp_path / "val_v1.0.json").write_text(f'{{"data": [{good}, {"[" * 60_000}')
    problems = RecordProblems(tmp_path)
    assert [one.id for one in docvqa.read(tmp_path, "val", problems)] == ["1"]
    assert "no complete JSON" in problems.found[0].says
    assert len(problems.unread) == 1


MEMORY = """
import resource, sys
from pathlib import Path
from mmneuron_lens.corpora import docvqa
from mmneuron_lens.corpora.records import RecordProblems
import ijson, numpy
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, resource.RLIM_INFINITY))
problems = RecordProblems(Path(sys.argv[1]))
print(len(list(docvqa.read(Path(sys.argv[1]), "val", problems))), len(problems))
"""


@pytest.mark.parametrize("value", ["lists in lists", "many lists", "a long text"])
def test_what_is_out_of_bounds_takes_no_memory(tmp_path, value):
    of_documents(tmp_path, OUT_OF_BOUNDS[value])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = [sys.executable, "-c", MEMORY, str(tmp_path)]
    found = subprocess.run(ran, capture_output=True, text=True, check=False, env=environment)
    assert (found.stdout.strip(), found.returncode) == ("2 1", 0), found.stderr[-500:]


def test_documents_within_bounds_are_not_changed_wherever_they_are_cut(monkeypatch):
    draw = random.Random(0)

    def value(levels: int):
        turn = draw.random()
        if levels and turn < 0.3:
            return [value(levels - 1) for _ in range(draw.randrange(4))]
        if levels and turn < 0.6:
            return {draw.choice(['a"', "b\\", "[x", "}", "é\n"]): value(levels - 1) for _ in range(draw.randrange(4))}
        return draw.choice([1, "x", "\\", '\\"', "[[[{", '"', None, 1.5, True, "é\u2028", ""])

    for _ in range(400):
        monkeypatch.setattr(json_bounds, "PIECE", draw.choice([1, 2, 3, 7, 50]))
        document = {"info": value(3), "data": [value(4) for _ in range(5)]}
        content = json.dumps(document, ensure_ascii=draw.random() < 0.5).encode()
        bounded = Bounded(io.BytesIO(content))
        assert b"".join(iter(lambda bounded=bounded: bounded.read(10), b"")) == content
        assert within_bounds(io.BytesIO(content))


RAISED = [TypeError("a\nb"), RecursionError(), OverflowError("x"), OSError(errno.ELOOP, "loop"), KeyError("a" * 10**6)]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_record_raises_names_it(tmp_path, error):
    def make(row):
        if row["id"] == 2:
            raise error
        return Sample(str(row["id"]), "common", (), "What?", ())

    problems = RecordProblems(tmp_path)
    records = [RawRecord(tmp_path, number, {"id": number}) for number in (1, 2, 3)]
    assert [one.id for one in good(records, problems, make, "id")] == ["1", "3"]
    (named,) = problems
    assert (named.line, type(error).__name__ in named.says) == (2, True)
    assert str(named).isprintable()
    assert len(str(named)) < 400


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOSPC, "full"), OSError(errno.EMFILE, "files"), KeyboardInterrupt()]
)
def test_what_the_machine_raises_ends_the_reading(tmp_path, error):
    def make(row):
        raise error

    with pytest.raises(type(error)):
        list(good([RawRecord(tmp_path, 1, {})], RecordProblems(tmp_path), make))


HUGE = "x" * 50_000_000


@pytest.mark.parametrize(
    "value", [HUGE, "\x00" + HUGE, HUGE.encode(), [HUGE, 1], {HUGE: 1}, {"a": [HUGE]}, [1] * 10**6, 10**5000],
    ids=["text", "unprintable", "bytes", "list", "name", "within", "many", "number"],
)  # fmt: skip
def test_a_large_value_is_not_quoted_whole(value):
    assert len(quote(value)) < 1100
    assert len(quote(HUGE)) == len(bare(HUGE)) == 103


def test_no_more_of_a_value_is_written_out_than_is_shown():
    written = []

    class Told(int):
        def __repr__(self) -> str:
            written.append(self)
            return "1"

    assert quote([Told()] * 10_000).startswith("[1, 1,")
    assert quote({number: [Told()] * 1000 for number in range(1000)}).startswith("{0: [1, ")
    assert len(written) <= 100 + 100 * 100


def test_values_that_fit_are_quoted_whole():
    for value in ("it's", 'a"b', b"x", [1, ["a", {"b": None}]], {"a": (1, 2)}, 1.5, None):
        assert quote(value) == repr(value)


@pytest.mark.parametrize("field", ["id", "domain", "question", "image", "answer", "kind"])
def test_a_name_that_is_long_is_said_shortly(tmp_path, field):
    one_picture(tmp_path / "a.png")
    row = {"domain": "common", "image": "a.png", "question": "What?", "answer": "it", "kind": "k"}
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, [row, row | {field: "y" * 200_000}])))
    samples, problems = read_folder(tmp_path)
    assert len(samples) == 1
    assert len(str(problems)) < 700


def test_of_very_many_bad_rows_the_first_are_named_and_all_counted(tmp_path, monkeypatch):
    one_picture(tmp_path / "a.png")
    row = json.dumps({"domain": "common", "image": "a.png", "question": "What?", "answer": "it"})
    (tmp_path / "questions.jsonl").write_text("\n".join([row, *["{}"] * 30]))
    monkeypatch.setattr(folder, "KEPT", 10)
    _, problems = read_folder(tmp_path)
    assert (len(problems), len(problems.found), problems.rows) == (30, 10, 31)
    assert str(problems).splitlines()[-1] == "and 20 more"


def test_half_characters_in_columns_that_are_only_passed_on(tmp_path):
    one_picture(tmp_path / "documents" / "a.png")
    row = '{{"questionId": {}, "question": "q", "image": "a.png", "answers": ["it"], "question_types": {}}}'
    types = ['["form"]', '["\\ud800"]', "[[1]]", '"form"', "null", "7", "[" + "9" * 4000 + "]"]
    rows = ", ".join(row.format(number, one) for number, one in enumerate(types))
    (tmp_path / "val_v1.0.json").write_text(f'{{"data": [{rows}]}}')
    problems = RecordProblems(tmp_path)
    found = list(docvqa.read(tmp_path, "val", problems))
    assert [(one.id, one.kind) for one in found] == [("0", "form"), ("3", "form"), ("4", "")]
    assert [one.line for one in problems] == [2, 3, 6, 7]
    one_picture(tmp_path / "figures" / "a.jpg")
    head = b"index,Figure_path,Question,Choice A,Choice B,Choice C,Choice D,Answer\n"
    lines = [index + b",a.jpg,What?,A:a,B:b,C:c,D:d,B\n" for index in (b"1", b"\xff", b"x" * 5000, b"2")]
    (tmp_path / "test_2.csv").write_bytes(head + b"".join(lines))
    problems = RecordProblems(tmp_path)
    assert [one.id for one in pmc_vqa.read(tmp_path, "test", problems)] == ["test_2-1", "test_2-2"]
    assert [one.line for one in problems] == [2, 3]


def test_a_csv_line_that_does_not_end_costs_itself_alone(tmp_path):
    one_picture(tmp_path / "images" / "a.jpg")
    head = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
    row = "a.jpg,What?,b,A:a,B:b,C:c,D:d,B\n"
    (tmp_path / "test.csv").write_text(f"{head}{row}{'x,' * LONGEST}\n{row}")
    problems = RecordProblems(tmp_path)
    assert [one.id for one in pmc_vqa.read(tmp_path, "test", problems)] == ["test-1", "test-3"]
    assert f"line 3 is no CSV row (longer than {LONGEST} characters)" in problems.found[0].says


def _header_only(place: Path) -> None:
    for file in place.rglob("*.csv"):
        file.write_text(file.read_text().splitlines()[0] + "\n")


def _no_rows(place: Path) -> None:
    for file in place.rglob("*.parquet"):
        polars.read_parquet(file).clear().write_parquet(file)


def _inactive(place: Path) -> None:
    for file in place.rglob("*questions.json"):
        file.write_text('{"questions": [{"id": 1, "active": false}]}')


def _no_list(place: Path) -> None:
    for file in place.rglob("*.json"):
        file.write_text("".join(["{", ", ".join(f'"{key}": []' for key in ("questions", "annotations", "data")), "}"]))


def _all_bad(place: Path) -> None:
    for file in place.rglob("*.json"):
        file.write_text('{"data": [{"a": 1}, {"a": 1}]}')


EMPTY = {
    "PMC-VQA": ("pmc_vqa", _header_only, "there is not one record in its files"),
    "LingoQA": ("lingoqa", _no_rows, "there is not one record in its files"),
    "RSVQA-HR": ("rsvqa", _inactive, "there is not one record in its files"),
    "VQAv2": ("vqav2", _no_list, "no list 'annotations' with records"),
    "DocVQA": ("docvqa", _all_bad, "no column 'image'"),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("corpora"), images=2)


@pytest.mark.parametrize("name", EMPTY)
def test_a_corpus_without_records_is_never_silent(published, tmp_path, name):
    part, change, says = EMPTY[name]
    shutil.copytree(published, tmp_path / "all")
    change(tmp_path / "all" / part)
    for split in ("train", "evaluation"):
        assert says in str(load_corpus(tmp_path / "all", split=split).problems)
    checked = check_corpora(tmp_path / "all")
    assert exit_code(checked) == 1
    assert any(line.startswith(name) and says in line for line in problem_lines(checked))
    shutil.copytree(tmp_path / "all" / part, tmp_path / "one" / part)
    with pytest.raises(CorpusError, match=f"has no good row among .*{says}"):
        load_corpus(tmp_path / "one")


def test_an_empty_folder_of_ones_own_says_so(tmp_path):
    (tmp_path / "questions.jsonl").write_text("\n\n")
    with pytest.raises(CorpusError, match=r"questions\.jsonl has no good row among 0"):
        read_folder(tmp_path)


@pytest.mark.parametrize("reader", [rsvqa, lingoqa])
def test_a_link_in_a_circle_is_a_missing_part(tmp_path, reader):
    for name in ("Data", "evaluation", "USGS_split_val_questions.json"):
        (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(CorpusError):
        list(reader.read(tmp_path, "val", RecordProblems(tmp_path)))
