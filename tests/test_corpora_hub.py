"""Corpora through `datasets` give the samples that the published files give, their images as files."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from PIL import Image as Picture
from published_formats import make

from mmneuron_lens.corpora.folder import CorpusError
from mmneuron_lens.corpora.hub import read_hub
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.published import PUBLISHED
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import DOMAINS

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make.write_all(tmp_path_factory.mktemp("corpora"), images=2)


def published(folder: Path, domain: str):
    one = PUBLISHED[domain]
    return list(one.read(folder / one.folder, one.evaluation, RecordProblems(folder)))


def as_rows(domain: str, samples):
    """The columns hub copies have, from samples: written from the formats' description, not through the reader."""
    rows = []
    for sample in samples:
        image = {"bytes": sample.images[0].read_bytes(), "path": sample.images[0].name}
        row = {"image": image, "question": sample.question}
        if domain == "common":
            row |= {"question_id": int(sample.id), "answer_type": sample.kind}
            row["answers"] = [{"answer": text, "answer_id": number} for number, text in enumerate(sample.answers)]
        elif domain == "document":
            row |= {"questionId": sample.id, "answers": list(sample.answers), "question_types": sample.kind.split(", ")}
        elif domain == "medical":
            row = {"image": image, "Question": sample.question, "Answer_label": sample.answers[0]}
            row |= {f"Choice {name}": f" {name}:{text}" for name, text in zip("ABCD", sample.options, strict=True)}
        elif domain == "remote_sensing":
            row |= {"id": int(sample.id), "type": sample.kind, "answer": sample.answers[0]}
        else:
            frames = [{"bytes": one.read_bytes(), "path": one.name} for one in sample.images]
            both = {"images": frames, "question": sample.question, "question_id": sample.id, "segment_id": "s"}
            rows += [both | {"answer": answer} for answer in sample.answers]
            continue
        rows.append(row)
    return rows


def as_dataset(domain: str, rows):
    image = datasets.Image()
    plain = [{name: value for name, value in row.items() if name not in ("image", "images")} for row in rows]
    features = datasets.Dataset.from_list(plain).features.copy()
    features |= {"images": datasets.List(image)} if domain == "auto_driving" else {"image": image}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def content(sample):
    pictures = [path.read_bytes() for path in sample.images]
    return sample.domain, sample.question, sample.answers, sample.options, sample.kind, pictures


@pytest.mark.parametrize("form", ["saved", "saved splits", "parquet"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_samples_as_from_published_files(folder, tmp_path, monkeypatch, domain, form):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    expected = published(folder, domain)
    rows = as_dataset(domain, as_rows(domain, expected))
    source, split = tmp_path / "copy", PUBLISHED[domain].evaluation
    if form == "saved":
        rows.save_to_disk(source)
    elif form == "saved splits":
        datasets.DatasetDict({split: rows}).save_to_disk(source)
    else:
        source.mkdir()
        rows.to_parquet(source / f"{'validation' if split == 'val' else split}-00000-of-00001.parquet")
    problems = RecordProblems(source)
    name = {"val": "validation"}.get(split, split) if form == "parquet" else split
    samples = list(read_hub(domain, source, name, tmp_path / "images", problems))
    assert str(problems) == f"0 of {len(rows)} records skipped."
    assert [content(one) for one in samples] == [content(one) for one in expected]
    assert [one.id for one in samples] == [one.id for one in expected]
    again = list(read_hub(domain, source, name, tmp_path / "images", RecordProblems(source)))
    assert again == samples


def test_bad_rows_are_named_and_pictures_that_are_open_are_written(folder, tmp_path):
    rows = as_rows("document", published(folder, "document"))
    rows[0]["question"], rows[1]["image"], rows[2]["questionId"] = "", None, rows[3]["questionId"]
    as_dataset("document", rows).save_to_disk(tmp_path / "copy")
    problems = RecordProblems(tmp_path)
    samples = list(read_hub("document", tmp_path / "copy", "val", tmp_path / "images", problems))
    assert ([one.id for one in samples], len(problems), problems.rows) == ([rows[2]["questionId"]], 3, 4)
    assert "record 1 (questionId '49153'): question '' is empty" in str(problems)
    assert "record 2 (questionId '49154'): image None is no image; give the data set an image column" in str(problems)
    assert "id 49156 is that of record 3 too" in str(problems)
    with Picture.open(samples[0].images[0]) as image:
        assert image.size


def test_what_cannot_be_loaded_says_so(tmp_path, monkeypatch):
    problems = RecordProblems(tmp_path)
    with pytest.raises(CorpusError, match=r"unknown domain 'food'; choose from common"):
        next(read_hub("food", tmp_path, "val", tmp_path, problems))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"empty', split 'val' cannot be loaded \(.*\); check both\."):
        next(read_hub("document", tmp_path / "empty", "val", tmp_path, problems))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs datasets: pip install 'mmneuron-lens\[corpora\]'"):
        next(read_hub("document", tmp_path, "val", tmp_path, problems))


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_hub_data_set_is_a_corpus_with_its_official_score(folder, tmp_path, monkeypatch, domain):
    monkeypatch.setenv("MMNEURON_CACHE", str(tmp_path / "cache"))
    expected = published(folder, domain)
    as_dataset(domain, as_rows(domain, expected)).save_to_disk(tmp_path / "copy")
    source, split = f"hub:{tmp_path / 'copy'}", PUBLISHED[domain].evaluation
    corpus = load_corpus(source, domain=domain, split=split)
    assert [(one.id, *content(one)) for one in corpus] == [(one.id, *content(one)) for one in expected]
    assert (corpus.name, corpus.official) == ("copy", {domain: PUBLISHED[domain].name})
    assert {path.relative_to(tmp_path).parts[:2] for one in corpus for path in one.images} == {("cache", "images")}
    assert corpus.folder == tmp_path / "cache" / "images"
    again = load_corpus(source, domain=domain, split=split, images_folder=tmp_path / "own")
    assert again.folder == tmp_path / "own"
    assert [content(one) for one in again] == [content(one) for one in expected]


def test_no_more_rows_come_than_are_asked_for(folder, tmp_path):
    rows = as_rows("document", published(folder, "document"))
    # Two questions an image; a row behind them is bad.
    rows.append(dict(rows[0], question="", questionId="99"))
    as_dataset("document", rows).save_to_disk(tmp_path / "copy")
    source, settings = f"hub:{tmp_path / 'copy'}", {"domain": "document", "images_folder": tmp_path / "images"}
    corpus = load_corpus(source, images=1, **settings)
    assert [one.id for one in corpus] == [rows[0]["questionId"], rows[1]["questionId"]]
    assert (corpus.problems.rows, len(corpus.problems)) == (3, 0)
    whole = load_corpus(source, **settings)
    assert (len(whole), len(whole.problems)) == (4, 1)
    assert len(load_corpus(source, questions_per_image=1, **settings)) == 2


def test_images_of_a_hub_data_set_are_written_whole_under_their_sha256(folder, tmp_path):
    rows = as_rows("common", published(folder, "common"))
    rows[0]["image"]["path"] = "a/b.jpg?download=1"
    as_dataset("common", rows).save_to_disk(tmp_path / "copy")
    corpus = load_corpus(f"hub:{tmp_path / 'copy'}", domain="common", images_folder=tmp_path / "images")
    for sample in corpus:
        (path,) = sample.images
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (path.stem, path.parent) == (digest, tmp_path / "images" / digest[:2])
        assert path.suffix in ("", ".jpg")
    files = {file for file in (tmp_path / "images").rglob("*") if file.is_file()}
    assert files == {path for sample in corpus for path in sample.images}


def test_a_hub_that_breaks_off_says_so(tmp_path, monkeypatch):
    class Rows(list):
        features = None

        def __iter__(self):
            raise ConnectionError("connection reset\nby peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **settings: Rows())
    with pytest.raises(CorpusError, match=r"'a/b', split 'train' cannot be loaded \(connection reset by peer\)"):
        load_corpus("hub:a/b", domain="common", images_folder=tmp_path)


def test_a_row_opens_no_path_or_address_outside_its_data_set(tmp_path):
    """Not as its image, not in another column, not by the ending of a name; nothing ends the stream."""
    import pyarrow
    import pyarrow.parquet

    place = tmp_path / "set"
    place.mkdir()
    Picture.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    content = (tmp_path / "secret.png").read_bytes()
    outside = ["/etc/passwd", "../secret.png", str(tmp_path / "secret.png"), f"{place}/../secret.png", "~/secret.png"]
    outside += [
        "file:///etc/passwd",
        "https://example.org/a.png",
        "zip://a.png::/tmp/a.zip",
        "a\0.png",
        "",
        ".",
        "..\\a",
    ]
    endings = ["a.png", "a.p\0ng", f"a.{'x' * 300}", "../../a.PNG", "a.exe", "a.png/..", ".."]
    images = [{"bytes": content, "path": name} for name in endings] + [
        {"bytes": None, "path": name} for name in outside
    ]
    images += [{"bytes": b"", "path": None}, None, {"bytes": content, "path": None}]
    other = {"bytes": None, "path": "/etc/passwd"}
    rows = [
        {
            "image": one,
            "question": "q",
            "questionId": str(number),
            "answers": ["a"],
            "more": [{"of": other}],
            "own": other,
        }
        for number, one in enumerate(images)
    ]
    image, text = datasets.Image(), datasets.Value("string")
    features = {"image": image, "question": text, "questionId": text, "answers": datasets.List(text)}
    features |= {"more": datasets.List({"of": image}), "own": image}
    schema = datasets.Features(features).arrow_schema
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), place / "train.parquet")
    problems = RecordProblems(place)
    found = list(read_hub("document", place, "train", tmp_path / "images", problems))
    assert [(one.id, one.images[0].suffix) for one in found] == [
        ("0", ".png"), ("1", ""), ("2", ""), ("3", ".png"), ("4", ""), ("5", ""), ("6", ""), (str(len(rows) - 1), ""),
    ]  # fmt: skip
    assert {one.images[0].read_bytes() for one in found} == {content}
    assert all(one.images[0].is_relative_to(tmp_path / "images") for one in found)
    assert [one.line for one in problems] == list(range(8, 8 + len(outside) + 2))
    assert all(str(one).isprintable() for one in problems)
