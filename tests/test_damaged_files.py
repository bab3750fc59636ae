"""Files that are damaged in one place: the place is named, what is lost is counted, everything else is read.

What is good is known from the making: every row has its own id, and the damage is written into one of them.
"""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pytest
from drawn_corpus import row, write_images, write_rows
from PIL import Image
from published_formats import make

from mmneuron_lens.corpora import docvqa, pmc_vqa, vqav2
from mmneuron_lens.corpora.check import as_table, check_corpora, exit_code, problem_lines
from mmneuron_lens.corpora.csv_records import LONGEST, csv_records
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.corpora.json_damage import PIECE
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.rows import CorpusError

HEADER = "id,image,question,a,b,c,d,answer"
COLUMNS = HEADER.split(",")


def lines_of(count: int) -> list[str]:
    """A header and plain rows; row n stands in line n + 1."""
    return [HEADER, *(f"{number},f{number}.jpg,What is it?,A,B,C,D,A" for number in range(1, count + 1))]


def read_csv(folder: Path, content: str | bytes) -> tuple[list[int], RecordProblems]:
    """The ids that are read, and the problems."""
    file = folder / "rows.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = RecordProblems(folder)
    return [int(one.value["id"]) for one in csv_records(file, problems)], problems


def test_rows_are_those_of_the_standard_library_whatever_cells_hold(tmp_path):
    draw = random.Random(3)
    cells = [
        "plain",
        "a, b",
        'say "x"',
        "two\nlines",
        "ends,\r\nand more, \n too",
        '"',
        "",
        "\n",
        '",',
        "é 日本",
        ",\n,",
    ]
    file = tmp_path / "rows.csv"
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows([number, *draw.choices(cells, k=7)] for number in range(5000))
    problems = RecordProblems(tmp_path)
    read = [one.value for one in csv_records(file, problems)]
    with open(file, newline="", encoding="utf-8") as stream:
        assert read == list(csv.DictReader(stream))
    assert (len(read), str(problems)) == (5000, "0 of 0 records skipped.")


@pytest.mark.parametrize(("row", "rows", "swallowed"), [(10, 2000, 1990), (1, 60, 59), (60, 60, 0)])
def test_an_unclosed_quotation_mark_costs_its_row_alone(tmp_path, row, rows, swallowed):
    lines = lines_of(rows)
    lines[row] = lines[row].replace("What", '"What')
    ids, problems = read_csv(tmp_path, "\n".join(lines) + "\n")
    assert ids == [number for number in range(1, rows + 1) if number != row]
    (problem,) = problems
    assert (problem.line, len(problems)) == (row, 1)
    assert f"rows.csv, record {row}: line {row + 1} " in str(problem)
    if swallowed:
        lost = f"{swallowed} lines" if swallowed > 1 else "line"
        assert f"opens a quotation mark that is not closed where a cell ends, which would swallow the {lost}" in str(
            problem
        )
        assert f"reading goes on at line {row + 2}" in str(problem)


UNCLOSED = '{n},f.jpg,"What is it?,A,B,C,D,A'
PLANTED = {
    "closed by a stray mark in the same column": ({10: UNCLOSED, 20: '{n},f.jpg,What is it?",A,B,C,D,A'}, {10}),
    "closed by a stray mark in another column": ({10: UNCLOSED, 20: '{n},f.jpg,What is it?,A,B",C,D,A'}, {10}),
    "closed by a good quoted cell": ({10: UNCLOSED, 20: '{n},f.jpg,"What, then?",A,B,C,D,A'}, {10}),
    "closed by a good cell of two lines": ({10: UNCLOSED, 20: '{n},f.jpg,"What,\nthen?",A,B,C,D,A'}, {10}),
    "closed in the next row, in the same column": ({10: UNCLOSED, 11: '{n},f.jpg,What is it?",A,B,C,D,A'}, {10}),
    "two of them": ({10: UNCLOSED, 30: UNCLOSED}, {10, 30}),
    "each of three in a row": ({10: UNCLOSED, 11: UNCLOSED, 12: UNCLOSED}, {10, 11, 12}),
    "in the last cell of the last row": ({60: '{n},f.jpg,What is it?,A,B,C,D,"A'}, {60}),
    "a mark behind a closed cell": ({10: '{n},f.jpg,"What is "it"?",A,B,C,D,A'}, {10}),
    "a mark within a bare cell": ({10: '{n},f.jpg,A 5" lesion?,A,B,C,D,A'}, set()),
    "too few cells": ({10: "{n},f.jpg,What is it?"}, {10}),
    "too many cells": ({10: "{n},f.jpg,What, then?,A,B,C,D,A"}, {10}),
    "too many cells over two lines": ({10: '{n},f.jpg,"What,\nthen?",A,B,C,D,A,more'}, {10}),
    "a second header": ({10: HEADER}, {10}),
    "a byte of zeros": ({10: "{n},f.jpg,What\0is it?,A,B,C,D,A"}, {10}),
    "a cell without end": ({10: "{n},f.jpg," + "x" * (LONGEST + 1) + ",A,B,C,D,A"}, {10}),
    "a quoted cell without end": ({10: '{n},f.jpg,"' + "x, y\n" * (LONGEST // 4)}, {10}),
}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("name", PLANTED)
def test_damage_is_named_and_every_other_row_is_read(tmp_path, name, ends):
    planted, bad = PLANTED[name]
    lines = lines_of(60)
    for number, line in planted.items():
        lines[number] = line.format(n=number)
    ids, problems = read_csv(tmp_path, ends.join(line.replace("\n", ends) for line in lines) + ends)
    assert ids == [number for number in range(1, 61) if number not in bad]
    first = min(bad, default=0)
    assert all(one.line >= first for one in problems)
    if name == "a quoted cell without end":
        # Its lines are no rows either, and each is named.
        assert len(problems) == LONGEST // 4
        return
    assert [one.line for one in problems] == sorted(bad)
    assert problems.rows == len(bad)
    for one in problems:
        assert f"line {one.line + 1}" in one.says or f"lines {one.line + 1} to" in one.says
        assert str(one).isprintable()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["bare", "marked"])
def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path, mark):
    assert read_csv(tmp_path, mark + "\n".join(lines_of(5)).encode())[0] == [1, 2, 3, 4, 5]


def test_latin_1_costs_the_cells_that_have_such_letters(tmp_path):
    home = make.write_pmc_vqa(tmp_path, "test", 4)
    content = (home / "test.csv").read_text().splitlines(keepends=True)
    content[2] = content[2].replace("What", "Où")
    (home / "test.csv").write_bytes("".join(content).encode("latin-1"))
    problems = RecordProblems(home)
    assert [one.id for one in pmc_vqa.read(home, "test", problems)] == ["test-1", "test-3", "test-4"]
    assert "record 2 " in str(problems)
    assert "holds half a character (surrogates not allowed); write it in UTF-8." in str(problems)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; download it again."),
        (b"\n1,2\n", "has no header: its first line is empty."),
        (('"' + "\n".join(lines_of(9))).encode(), "has no header: line 1 opens a quotation mark"),
        (b"id,answer,id\n1,2,3\n", "names column 'id' twice in its header"),
        ("\n".join(lines_of(3)).encode("utf-16"), "is UTF-16, not UTF-8; save it as UTF-8."),
        ("\n".join(lines_of(3)).encode("utf-16-le"), "is UTF-16 or UTF-32, not UTF-8; save it as UTF-8."),
        ("\n".join(lines_of(3)).encode("utf-32"), "is UTF-32, not UTF-8; save it as UTF-8."),
    ],
    ids=["empty", "empty line", "unclosed", "twice", "UTF-16", "UTF-16 unmarked", "UTF-32"],
)
def test_a_csv_file_that_cannot_be_read_at_all_is_refused(tmp_path, content, says):
    with pytest.raises(CorpusError) as refused:
        read_csv(tmp_path, content)
    assert f"{tmp_path / 'rows.csv'} {says}" in str(refused.value)


def docvqa_file(folder: Path, count: int, between: str = " ") -> Path:
    (folder / "documents").mkdir()
    Image.new("RGB", (2, 2)).save(folder / "documents" / "a.png")
    good = {"question": "What is it?", "image": "documents/a.png", "answers": ["it"]}
    listed = [json.dumps({"questionId": number, **good}) for number in range(1, count + 1)]
    file = folder / "val_v1.0.json"
    file.write_text('{"data": [' + f",{between}".join(listed) + "]}")
    return file


def read_docvqa(folder: Path) -> tuple[list[int], RecordProblems]:
    problems = RecordProblems(folder)
    return [int(one.id) for one in docvqa.read(folder, "val", problems)], problems


# How record 700 of 2000 is damaged; ~ is what stands between two records.
JSON_DAMAGE = {
    "a lost colon": ('"questionId": 700,', '"questionId" 700,'),
    "a lost comma": (',~{"questionId": 700,', '~{"questionId": 700,'),
    "a byte of zeros": ('"questionId": 700,', '"questionId": \x00700,'),
    "a torn record": ('"questionId": 700, "question": "What is it?"', '"questionId": 700, "questi'),
}


@pytest.mark.parametrize("between", [" ", "\n"], ids=["one line", "lines"])
@pytest.mark.parametrize("name", JSON_DAMAGE)
def test_json_damaged_in_the_middle_says_where_and_how_much_is_lost(tmp_path, name, between):
    whole, broken = (part.replace("~", between) for part in JSON_DAMAGE[name])
    file = docvqa_file(tmp_path, 2000, between)
    text = file.read_text()
    assert text.count(whole) == 1
    text = text.replace(whole, broken)
    file.write_text(text)
    ids, problems = read_docvqa(tmp_path)
    assert ids == list(range(1, 700))
    (problem,) = problems
    assert "val_v1.0.json, record 700: no complete JSON (" in str(problem)
    line, character, behind = map(float, re.findall(r"line (\d+), character (\d+), with (\S+) % of", str(problem))[0])
    before = text.split("\n")[: int(line) - 1]
    place = sum(map(len, before)) + len(before) + int(character) - 1
    # A parser sees that something is wrong at the end of the first word that does not fit.
    assert 0 <= place - text.index(broken) <= len(broken) + len(', "')
    assert place > PIECE
    assert behind == pytest.approx(100 * (1 - place / len(text)), abs=1)
    last = str(problems).splitlines()[-1]
    assert last.startswith(f"{file} is not read from record 700 on: it is damaged at line {int(line)}, character ")


def test_a_json_file_that_ends_early_says_so(tmp_path):
    file = docvqa_file(tmp_path, 2000)
    text = file.read_text()
    file.write_text(text[: text.index('"questionId": 700,') + 5])
    ids, problems = read_docvqa(tmp_path)
    assert ids == list(range(1, 700))
    end = len(file.read_text()) + 1
    assert f"it is damaged at line 1, character {end}, where the file ends." in str(problems)


WHAT, WHERE = b'"questionId": 700, "question": "What', b'"questionId": 700, "question": "O\xf9'


def test_letters_that_are_not_utf_8_cost_their_record_alone(tmp_path):
    file = docvqa_file(tmp_path, 2000)
    content = file.read_bytes().replace(
        b'"questionId": 700, "question": "What', b'"questionId": 700, "question": "O\xf9'
    )
    file.write_bytes(content)
    ids, problems = read_docvqa(tmp_path)
    assert ids == [number for number in range(1, 2001) if number != 700]
    (problem,) = problems
    assert "record 700 (questionId 700): question " in str(problem)
    assert "holds half a character" in str(problem)
    assert not problems.unread


def test_letters_that_are_not_utf_8_do_not_hide_damage_behind_them(tmp_path):
    file = docvqa_file(tmp_path, 2000)
    content = file.read_bytes().replace(
        b'"questionId": 700, "question": "What', b'"questionId": 700, "question": "O\xf9'
    )
    file.write_bytes(content.replace(b'"questionId": 900,', b'"questionId" 900,'))
    ids, problems = read_docvqa(tmp_path)
    assert ids == [number for number in range(1, 900) if number != 700]
    assert [one.line for one in problems] == [700, 900]
    assert "is not read from record 900 on" in problems.unread[0]


def test_json_with_a_byte_order_mark_is_read_and_another_encoding_refused(tmp_path):
    file = docvqa_file(tmp_path, 3)
    text = file.read_text()
    file.write_text(text, encoding="utf-8-sig")
    assert read_docvqa(tmp_path)[0] == [1, 2, 3]
    file.write_text(text, encoding="utf-16")
    with pytest.raises(CorpusError, match=r"val_v1\.0\.json is UTF-16, not UTF-8; save it as UTF-8\."):
        read_docvqa(tmp_path)


def test_a_check_of_corpora_does_not_call_a_lost_file_one_bad_record(tmp_path):
    home = make.write_vqav2(tmp_path / "vqav2", "val", 8)
    make.write_vqav2(home, "train", 2)
    file = home / "v2_OpenEnded_mscoco_val2014_questions.json"
    text = file.read_text()
    file.write_text(text.replace('"question_id": 25000', '"question_id" 25000'))
    checked = check_corpora(tmp_path)
    (one,) = (corpus for corpus in checked if corpus.name == "VQAv2")
    assert one.read["val"][0] == 2
    assert (one.whole, exit_code(checked)) == (False, 1)
    cells = [str(cell) for column in as_table(checked).columns for cell in column.cells]
    assert any("val: 2 good, 1 bad, the rest not read" in cell for cell in cells)
    assert any("is not read from record 3 on: it is damaged at line 1" in line for line in problem_lines(checked))
    assert [one.id for one in vqav2.read(home, "train", RecordProblems(home))] == ["9000", "9001", "25000", "25001"]


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "corpus", "common", 3)
    return tmp_path / "corpus"


def good_lines(count: int) -> list[str]:
    return [json.dumps(row("common", number, id=number)) for number in range(count)]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["bare", "marked"])
def test_rows_of_ones_own_are_read_whatever_ends_a_line(folder, ends, mark):
    (folder / "questions.jsonl").write_text(mark + ends.join([*good_lines(3), "", "{}"]), newline="")
    samples, problems = read_folder(folder)
    assert ([one.id for one in samples], len(problems)) == (["0", "1", "2"], 1)
    assert "questions.jsonl, line 5: no domain" in str(problems)


LOST_ENDS = {
    "two objects": ("{0}{1}", 2, '2 objects where one stands on a line: \'{"domain"'),
    "three with commas": ("{0}, {1},{2}", 3, "3 objects where one stands on a line"),
    "a list": ("[{0}, {1}]", 2, "a list of 2 objects: '[{"),
}


@pytest.mark.parametrize("name", LOST_ENDS)
def test_rows_on_one_line_are_each_counted(folder, name):
    form, lost, says = LOST_ENDS[name]
    first, *others = good_lines(3)
    other = [json.dumps(row("common", number, id=f"other {number}")) for number in range(3)]
    write_rows(
        folder, [first, form.replace("{0}", other[0]).replace("{1}", other[1]).replace("{2}", other[2]), *others]
    )
    samples, problems = read_folder(folder)
    assert [one.id for one in samples] == ["0", "1", "2"]
    assert (len(problems), problems.rows) == (lost, 3 + lost)
    assert str(problems).startswith(f"{lost} of {3 + lost} rows skipped:\n")
    (problem,) = problems
    assert problem.line == 2
    assert says in problem.says
    assert "write each on a line of its own." in problem.says


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_rows_in_another_encoding_are_one_clear_line(folder, encoding):
    (folder / "questions.jsonl").write_text("\n".join(good_lines(3)), encoding=encoding)
    with pytest.raises(CorpusError, match=r"questions\.jsonl is UTF-\d\d.*, not UTF-8; save it as UTF-8\."):
        read_folder(folder)


def test_a_row_in_latin_1_is_bad_alone(folder):
    first, second, third = good_lines(3)
    write_rows(folder, [first, second.replace("Is", "Où").encode("latin-1"), third])
    samples, problems = read_folder(folder)
    assert [one.id for one in samples] == ["0", "2"]
    assert "line 2: not JSON ('utf-8' codec can't decode byte 0xf9" in str(problems)
    assert "O\\\\xf9" in str(problems)
