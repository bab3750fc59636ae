"""10,000 malformed records of every published format: no exception, every one named by its number, the totals add up.

Records are written as raw text, most of them with one fault drawn by a seeded generator from what that place of the
format can hold and must not. Which are good and which are bad is known from the drawing, not from the readers.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
import torch
from conftest import tiny_lens
from damaged_pictures import KINDS, Drawn, drawn
from PIL import Image

from mmneuron_lens.corpora import docvqa, lingoqa, pmc_vqa, records, rsvqa, vqav2
from mmneuron_lens.corpora.folder import image_sizes, open_images, read_folder
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.wire.images import decode

RECORDS = 1300
"""Bad records of each of the eight formats."""

NUMBER = ["0", "-3", "12345678901234567890123"]
TEXT = ['"7"', '"words"', '"\\u00e9\\n"']
NEITHER = [
    "null", "true", "false", "1.5", "-1e300", "[]", "{}", "[[]]", '[null, 1]', '{"a": {"b": [1]}}', '""', '"  \\n"',
    '"\\udc00"', '"half \\udc00 a character"', "[" * 400 + "]" * 400, '{"answer": "x"}', '["\\ud83d"]',
]  # fmt: skip
"""JSON that is neither a whole number nor a text with something in it."""
PATHS = ['"../up.png"', '"/etc/hostname"', '"no.png"', '"\\u0000"', '"a\\u0000.png"', '"."', f'"{"x" * 5000}"', '"//"']
"""Texts that are the path of no image of a corpus."""
WHOLE = ["null", "7", '"text"', "[]", "[1, 2]", "true"]
"""What may stand where a record should."""

Raw = dict[str, str]
"""A record: its columns as JSON text."""


@pytest.fixture(autouse=True)
def _all_are_named(monkeypatch):
    monkeypatch.setattr(records, "KEPT", 10**6)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)
    return path


def spoilt(draw: random.Random, good: Raw, faults: dict[str, list[str]], needed: list[str]) -> str:
    """A good record with one fault: a column that holds a fault, is missing, or has another name; or no record."""
    made = dict(good)
    turn = draw.random()
    if turn < 0.1:
        return draw.choice(WHOLE)
    if turn < 0.2:
        del made[draw.choice(needed)]
    elif turn < 0.3:
        name = draw.choice(needed)
        made[f"{name}_"] = made.pop(name)
    else:
        name = draw.choice(list(faults))
        made[name] = draw.choice(faults[name])
    return raw(made)


def raw(record: Raw) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in record.items()) + "}"


def listed(
    seed: int, make: Callable[[int], Raw], faults: dict[str, list[str]], needed: list[str]
) -> tuple[list[str], set[int]]:
    """Raw records, about one in five of them good, and the numbers (from 1) of the `RECORDS` bad ones."""
    draw, texts, bad = random.Random(seed), [], set()
    while len(bad) < RECORDS:
        good = make(len(texts))
        if draw.random() < 0.2:
            texts.append(raw(good))
        else:
            texts.append(spoilt(draw, good, faults, needed))
            bad.add(len(texts))
    return texts, bad


def write(path: Path, key: str, texts: list[str]) -> None:
    path.write_text(f'{{"info": [], "{key}": [\n' + ",\n".join(texts) + "\n]}", encoding="utf-8")


def check(found: Iterator[Sample], problems: RecordProblems, file: str, bad: set[int], total: int) -> list[Sample]:
    """Reads all; those named in this file are the bad ones and no others, each once, on one line."""
    samples = list(found)
    named = [one for one in problems if one.file.name == file]
    assert [one.line for one in named] == sorted(bad)
    assert len(samples) == total - len(bad)
    assert problems.rows == total
    assert len(problems) == len(problems.found)
    for one in problems:
        assert one.says.strip()
        assert str(one).isprintable()
        assert len(str(one)) < 6000
    assert str(problems).startswith(f"{len(problems)} of {total} records skipped:")
    return samples


@pytest.mark.parametrize("broken", ["questions", "annotations"])
def test_vqav2(tmp_path, broken):
    picture(tmp_path / "val2014" / "COCO_val2014_000000000009.jpg")

    def question(number: int) -> Raw:
        return {"image_id": "9", "question": '"Is it red?"', "question_id": str(10_000 + number)}

    def annotation(number: int) -> Raw:
        answers = json.dumps([{"answer": "yes", "answer_id": place} for place in range(10)])
        return {
            "image_id": "9", "answers": answers, "answer_type": '"yes/no"', "question_id": str(10_000 + number),
        }  # fmt: skip

    if broken == "questions":
        faults = {
            "question": NEITHER + NUMBER,
            "question_id": NEITHER + NUMBER + TEXT,
            "image_id": NEITHER + NUMBER + TEXT + PATHS,
        }
        asked, bad = listed(1, question, faults, ["question", "question_id", "image_id"])
        told, untold = [raw(annotation(number)) for number in range(len(asked))], set()
    else:
        faults = {
            "answers": NEITHER + NUMBER + TEXT,
            "question_id": NEITHER + NUMBER + TEXT,
            "image_id": NEITHER + NUMBER + TEXT,
            "answer_type": NEITHER + NUMBER,
        }
        faults["answers"].remove("[]")
        told, bad = listed(2, annotation, faults, ["answers", "question_id", "image_id", "answer_type"])
        asked, untold = [raw(question(number)) for number in range(len(told))], bad
    write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", "questions", asked)
    write(tmp_path / "v2_mscoco_val2014_annotations.json", "annotations", told)
    problems = RecordProblems(tmp_path)
    found = vqav2.read(tmp_path, "val", problems)
    check(found, problems, "v2_OpenEnded_mscoco_val2014_questions.json", bad, len(asked))
    assert {one.line for one in problems if "annotations" in one.file.name} <= untold


def test_rsvqa(tmp_path):
    picture(tmp_path / "Data" / "3.png")

    def question(number: int) -> Raw:
        return {
            "id": str(10_000 + number), "img_id": "3", "type": '"count"', "question": '"How many?"',
            "answers_ids": "[5]", "active": "true",
        }  # fmt: skip

    ids = [f"[{one}]" for one in NEITHER + NUMBER + TEXT if one != "[]"]
    faults = {
        "question": NEITHER + NUMBER,
        "id": NEITHER,
        "img_id": NEITHER + NUMBER + TEXT + PATHS,
        "type": NEITHER + NUMBER,
        "answers_ids": NEITHER + NUMBER + TEXT + ids,
    }
    asked, bad = listed(3, question, faults, ["id", "img_id", "type", "question", "answers_ids"])
    write(tmp_path / "USGS_split_val_questions.json", "questions", asked)
    answers = ['{"id": 5, "answer": "two", "active": true}', *(f'{{"id": 6, "answer": {one}}}' for one in NEITHER)]
    write(tmp_path / "USGS_split_val_answers.json", "answers", answers)
    images = ['{"id": 3, "active": true}', *(f'{{"id": {one}, "active": true}}' for one in NEITHER)]
    write(tmp_path / "USGS_split_val_images.json", "images", images)
    problems = RecordProblems(tmp_path)
    check(rsvqa.read(tmp_path, "val", problems), problems, "USGS_split_val_questions.json", bad, len(asked))
    assert len(problems) == len(bad) + 2 * len(NEITHER)


def test_docvqa(tmp_path):
    picture(tmp_path / "documents" / "a.png")

    def record(number: int) -> Raw:
        return {
            "questionId": str(10_000 + number), "question": '"What?"', "question_types": '["form"]',
            "image": '"documents/a.png"', "answers": '["7", "seven"]',
        }  # fmt: skip

    faults = {
        "question": NEITHER + NUMBER,
        "questionId": NEITHER,
        "image": NEITHER + NUMBER + PATHS,
        "answers": NEITHER + NUMBER + TEXT + [f'["good", {one}]' for one in NEITHER],
    }
    asked, bad = listed(4, record, faults, ["questionId", "question", "image", "answers"])
    write(tmp_path / "val_v1.0.json", "data", asked)
    problems = RecordProblems(tmp_path)
    check(docvqa.read(tmp_path, "val", problems), problems, "val_v1.0.json", bad, len(asked))


@pytest.mark.parametrize("version", [1, 2])
def test_pmc_vqa(tmp_path, version):
    draw, lines, bad, number = random.Random(4 + version), [], set(), 0
    picture(tmp_path / ("images" if version == 1 else "figures") / "a.jpg")
    choices = {f"Choice {letter}": f" {letter}: one {letter} ".encode() for letter in "ABCD"}
    answer = "Answer_label" if version == 1 else "Answer"
    empty = [b"", b"  ", b'"\n"', b"\xff\xfe", b"half \xc3"]
    paths = [b"../a.jpg", b"/etc/hostname", b"none.jpg", b"a\x00.jpg", b".", b"x" * 5000, b'"a.jpg\n.jpg"']
    faults = {
        "Figure_path": empty + paths,
        "Question": empty,
        answer: [*empty, b"E", b"a", b"AB", b"1", b"heart"],
        **{column: [*empty, f" {column[-1]}: ".encode()] for column in choices},
    }
    while len(bad) < RECORDS:
        number += 1
        row = {"Figure_path": b"a.jpg", "Question": b"What?", "Answer": b"one B", **choices, answer: b"B"}
        row = {"index": str(number).encode(), **row} if version == 2 else row
        if not lines:
            lines.append(",".join(row).encode())
        cells = list(row.values())
        if draw.random() < 0.8:
            bad.add(number)
            if draw.random() < 0.2:
                cells = draw.choice([cells[:-1], [*cells, b"more"], [b"one"], cells * 3])
            else:
                column = draw.choice(list(faults))
                cells = list((row | {column: draw.choice(faults[column])}).values())
        lines.append(b",".join(cells))
    file = tmp_path / ("val.csv" if version == 0 else "test.csv" if version == 1 else "test_2.csv")
    file.write_bytes(b"\r\n".join(lines) + b"\r\n")
    problems = RecordProblems(tmp_path)
    check(pmc_vqa.read(tmp_path, "test", problems), problems, file.name, bad, number)


def test_lingoqa(tmp_path):
    draw, rows, bad = random.Random(7), [], set()
    picture(tmp_path / "evaluation" / "images" / "val" / "s" / "0.jpg")
    frames = ["images/val/s/0.jpg"]
    paths = [json.loads(one) for one in PATHS]
    faults: dict[str, list[Any]] = {
        "question_id": [None, "", " \n"],
        "segment_id": [None, "", " \n"],
        "question": [None, "", "\t"],
        "answer": [None, "", " "],
        "images": [None, [], [None], [""], [*frames, None]] + [[*some, one] for one in paths for some in ([], frames)],
    }
    while len(bad) < RECORDS:
        row = {
            "question_id": f"q{len(rows)}", "segment_id": "s", "images": frames, "question": "What?", "answer": "It.",
        }  # fmt: skip
        if draw.random() < 0.8:
            column = draw.choice(list(faults))
            row |= {column: draw.choice(faults[column])}
            bad.add(len(rows) + 1)
        rows.append(row)
    file = tmp_path / "evaluation" / "val.parquet"
    polars.DataFrame(rows).write_parquet(file)
    problems = RecordProblems(tmp_path)
    check(lingoqa.read(tmp_path, "val", problems), problems, "val.parquet", bad, len(rows))
    for column in faults:
        # A column of another type, or none, makes every row bad.
        for change in ({column: polars.lit(3.5)}, {column: polars.lit(True)}, {column: polars.lit(b"x")}):
            polars.DataFrame(rows[:40]).with_columns(**change).write_parquet(file)
            problems = RecordProblems(tmp_path)
            check(lingoqa.read(tmp_path, "val", problems), problems, "val.parquet", set(range(1, 41)), 40)
        polars.DataFrame(rows[:40]).drop(column).write_parquet(file)
        problems = RecordProblems(tmp_path)
        check(lingoqa.read(tmp_path, "val", problems), problems, "val.parquet", set(range(1, 41)), 40)


def test_a_folder_of_ones_own(tmp_path):
    picture(tmp_path / "a.png")

    def row(number: int) -> Raw:
        return {"domain": '"common"', "image": '"a.png"', "question": '"What?"', "answer": '"it"', "id": str(number)}

    faults = {
        "domain": [*NEITHER, *NUMBER, '"a\\nb"', '"\\u0000"'],
        "image": NEITHER + NUMBER + PATHS,
        "question": NEITHER + NUMBER,
        "answer": [one for one in NEITHER + NUMBER if one != '["x"]'],
        "id": [one for one in NEITHER if one != "null"],
        "options": [one for one in NEITHER + NUMBER + TEXT if one != "null"],
        "images": ['["a.png"]'],
    }
    lines, bad = listed(8, row, faults, ["domain", "image", "question", "answer"])
    draw = random.Random(9)
    content = [line.encode() for line in lines]
    for number in draw.sample(sorted(bad), 300):
        # Not JSON at all, or no UTF-8; on one line, and not an empty one.
        noise = [b"{", b"nothing", b'{"domain": "common"', b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000, b"NaN"]
        content[number - 1] = draw.choice(noise)
    (tmp_path / "questions.jsonl").write_bytes(b"\n".join(content))
    samples, problems = read_folder(tmp_path)
    assert [one.line for one in problems] == sorted(bad)
    assert (len(samples), problems.rows) == (len(lines) - len(bad), len(lines))
    assert all(str(one).isprintable() for one in problems)


@pytest.mark.parametrize("value", ["9" * 5000, "1e999", '"\x01"', "nothing", "[1, 2}"], ids=lambda value: value[:5])
def test_what_no_parser_reads_is_named_and_those_before_it_count(tmp_path, value):
    picture(tmp_path / "documents" / "a.png")
    good = '{"questionId": %s, "question": "What?", "image": "documents/a.png", "answers": ["it"]}'
    write(tmp_path / "val_v1.0.json", "data", [good % 1, good % '"\\udc00"', good % 2, good % value, good % 3])
    problems = RecordProblems(tmp_path)
    samples = list(docvqa.read(tmp_path, "val", problems))
    assert [one.id for one in samples] == ["1", "2"]
    assert [one.line for one in problems] == [2, 4]
    assert "no complete JSON (" in str(problems.found[1])
    assert all(str(one).isprintable() for one in problems)


@pytest.mark.parametrize("seed", [10, 11])
def test_damaged_pictures(tmp_path, seed):
    """Each is decoded, at the size that its header says, or named; of damage alone it is for Pillow to say which."""
    problems, came, total = RecordProblems(tmp_path), Counter[tuple[str, str]](), 150 * len(KINDS)
    for number, (kind, one) in enumerate(drawn(seed, total)):
        came[kind, outcome(tmp_path / f"{number}.{one.ending}", one, problems)] += 1
    assert len(problems) == sum(count for (_, what), count in came.items() if what == "refused")
    assert came.total() == total
    each = total // len(KINDS)
    decoded = {kind: came[kind, "decoded"] for kind in KINDS}
    assert decoded["with an orientation"] == decoded["wrong ending"] == each
    assert decoded["bomb"] == decoded["empty"] == decoded["no picture"] == 0
    assert 0 < decoded["bits and bytes changed"] < each > decoded["cut off"]
    assert each / 2 < decoded["whole"] < each


def outcome(path: Path, one: Drawn, problems: RecordProblems) -> str:
    """Writes and opens one picture: "decoded" or "refused", which is one line in `problems` and ends nothing."""
    path.write_bytes(one.content)
    problems.rows += 1
    named = len(problems)
    sample = Sample(path.name, "common", (path,), "What?", ("it",))
    opened, sizes = open_images(sample, problems), image_sizes(sample) if named == len(problems) else None
    path.unlink()
    if opened is None:
        assert len(problems) == named + 1
        assert str(problems.found[-1]).isprintable()
        assert path.name in problems.found[-1].says
        assert one.expected in (None, "refused"), problems.found[-1]
        return "refused"
    assert [picture.mode for picture in opened] == ["RGB"]
    assert [picture.size for picture in opened] == sizes
    assert one.expected in (None, opened[0].size)
    return "decoded"


def test_a_count_goes_on_over_damaged_pictures(tmp_path):
    """What is counted are the pictures that can be decoded, as if there were no others."""
    lens, rows, good = tiny_lens("llava_next"), [], []
    for number, (_, one) in enumerate(drawn(12, 63)):
        (tmp_path / f"{number}.{one.ending}").write_bytes(one.content)
        rows.append({"domain": "common", "image": f"{number}.{one.ending}", "question": "What?", "answer": "it"})
        try:
            decode(one.content)
        except ValueError:
            continue
        good.append(rows[-1])
    assert 10 < len(good) < 40
    counts = []
    for some in (rows, good):
        (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, some)))
        samples, problems = read_folder(tmp_path)
        counts.append(count_domain(lens, samples, batch_size=4, problems=problems))
        assert len(problems) == len(some) - len(good)
    for site, active in counts[1].active.items():
        assert torch.equal(counts[0].active[site], active)
        assert torch.equal(counts[0].tokens[site], counts[1].tokens[site])
