"""Links that a user made are followed by every reader; a path in a row that leads out of the corpus never is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from drawn_corpus import row, write_corpus, write_images, write_rows
from PIL import Image
from published_formats import make

from mmneuron_lens.corpora.content import image_digest
from mmneuron_lens.corpora.folder import open_images, read_folder
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.published import PUBLISHED
from mmneuron_lens.corpora.records import RecordProblems

DOMAINS = list(PUBLISHED)


def snapshot(folder: Path, blobs: Path) -> None:
    """Moves every file to `blobs`, under a name of its own, and leaves a relative link, as a hub's cache does."""
    blobs.mkdir()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, file in enumerate(files):
        shutil.move(file, blobs / f"{number:040x}")
        file.symlink_to(os.path.relpath(blobs / f"{number:040x}", file.parent))


def other_disk(folder: Path, elsewhere: Path) -> None:
    """Moves every folder to `elsewhere`, and leaves an absolute link."""
    elsewhere.mkdir()
    for inner in [path for path in sorted(folder.iterdir()) if path.is_dir()]:
        shutil.move(inner, elsewhere / inner.name)
        inner.symlink_to(elsewhere / inner.name)


def whole_folder(folder: Path, elsewhere: Path) -> None:
    """Moves the corpus, and leaves a link in its place."""
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def two_links(folder: Path, elsewhere: Path) -> None:
    """Links to links."""
    other_disk(folder, elsewhere)
    snapshot(elsewhere, elsewhere.with_name("blobs"))


LINKED = [snapshot, other_disk, whole_folder, two_links]


def asked(samples):
    """What samples ask, and the bytes of their images."""
    return [
        (one.id, one.domain, one.question, one.answers, [image_digest(path) for path in one.images]) for one in samples
    ]


@pytest.mark.parametrize("link", LINKED, ids=lambda link: link.__name__)
def test_a_corpus_of_ones_own_reads_the_same_through_links(tmp_path, link):
    folder = write_corpus(tmp_path / "mine", images=3)
    before, _ = read_folder(folder)
    expected = asked(before)
    link(folder, tmp_path / "elsewhere")
    corpus = load_corpus(folder)
    assert asked(corpus) == expected
    assert str(corpus.problems) == "0 of 12 rows skipped."
    assert all(open_images(sample, corpus.problems) for sample in corpus)
    assert "missing" not in {digest for *_, digests in expected for digest in digests}


@pytest.mark.parametrize("link", LINKED, ids=lambda link: link.__name__)
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_published_corpus_reads_the_same_through_links(tmp_path, domain, link):
    one = PUBLISHED[domain]
    make.write_all(tmp_path / "corpora", images=2)
    folder, problems = tmp_path / "corpora" / one.folder, RecordProblems(tmp_path)
    expected = asked(one.read(folder, one.evaluation, problems))
    link(folder, tmp_path / "elsewhere")
    assert asked(one.read(folder, one.evaluation, problems)) == expected
    assert (len(expected) > 1, len(problems)) == (True, 0)


BAD = {
    "up": ("../out.png", "lies outside"),
    "up and down again": ("images/../images/a.png", "lies outside"),
    "up behind a link": ("there/../out.png", "lies outside"),
    "absolute": ("{out}", "lies outside"),
    "absolute, into the corpus": ("{folder}/images/a.png", "lies outside"),
    "two slashes": ("//images/a.png", "lies outside"),
    "home": ("~/a.png", "is missing"),
    "Windows' own": ("C:\\images\\a.png", "its path must be relative to the folder"),
    "backslashes": ("images\\a.png", "it has backslashes, where a path has /"),
    "other letters": ("images/A.PNG", "there is images/a.png, in other letters"),
    "another ending": ("images/a.PNG", "there is images/a.png, in other letters"),
    "a folder": ("images", "it is a folder"),
    "a folder behind a link": ("there", "it is a folder"),
    "a link to nothing": ("images/broken.png", "it is a link to nowhere.png, where nothing is"),
    "links in a circle": ("images/one.png", "its link leads in a circle"),
    "a pipe": ("images/pipe.png", "it is neither a file nor a folder"),
    "below a file": ("images/a.png/b.png", "is missing"),
    "a long name": ("x" * 300 + ".png", "is no path (File name too long)"),
    "a byte of zeros": ("images/a\0.png", "is no path (embedded null byte)"),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    for file in (folder / "images" / "a.png", tmp_path / "out.png"):
        Image.new("RGB", (8, 8)).save(file)
    (tmp_path / "far").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "far" / "b.png")
    (folder / "there").symlink_to(tmp_path / "far")
    (folder / "images" / "broken.png").symlink_to("nowhere.png")
    (folder / "images" / "one.png").symlink_to("two.png")
    (folder / "images" / "two.png").symlink_to("one.png")
    (folder / "images" / "out.png").symlink_to(tmp_path / "out.png")
    os.mkfifo(folder / "images" / "pipe.png")
    return folder


@pytest.mark.parametrize("name", ["images/a.png", "./images/a.png", "images//a.png", "there/b.png", "images/out.png"])
def test_a_path_that_goes_down_is_good_and_a_link_on_it_followed(folder, name):
    samples, problems = read_folder(write_rows(folder, [row("common", 0, image=name)]))
    assert (len(problems), [image.size for image in open_images(samples[0]) or ()]) == (0, [(8, 8)])


@pytest.mark.parametrize("name", BAD)
def test_a_path_that_is_no_image_of_the_corpus_is_one_clear_line(folder, tmp_path, name):
    given, says = BAD[name]
    image = given.format(out=tmp_path / "out.png", folder=folder)
    samples, problems = read_folder(
        write_rows(folder, [row("common", 0, image="images/a.png"), row("common", 0, image=image)])
    )
    assert len(samples) == 1
    (problem,) = problems
    assert problem.line == 2
    assert problem.says.startswith("image ")
    assert says in problem.says
    assert str(problem).isprintable()
    assert problem.says.endswith((".", "folder."))


@pytest.mark.parametrize("name", BAD)
def test_the_same_rule_holds_in_published_corpora(folder, tmp_path, name):
    given, says = BAD[name]
    home = tmp_path / "docvqa"
    home.mkdir()
    (home / "documents").symlink_to(folder)
    good = {"question": "What?", "answers": ["it"]}
    image = given.format(out=tmp_path / "out.png", folder=folder)
    listed = [{"questionId": number, "image": one, **good} for number, one in enumerate(["images/a.png", image])]
    (home / "val_v1.0.json").write_text(json.dumps({"data": listed}))
    problems = RecordProblems(home)
    samples = list(PUBLISHED["document"].read(home, "val", problems))
    assert [one.id for one in samples] == ["0"]
    (problem,) = problems
    assert says in problem.says
    assert str(problem).isprintable()


def test_images_of_a_hub_data_set_lie_in_its_folder(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    datasets.disable_progress_bars()
    names = ["images/a.png", "there/b.png", "../out.png", str(tmp_path / "out.png"), "images/broken.png"]
    rows = [
        {"image": {"path": name, "bytes": None}, "questionId": number, "question": "What?", "answers": ["it"]}
        for number, name in enumerate(names)
    ]
    features = datasets.Features(
        image=datasets.Image(),
        questionId=datasets.Value("int64"),
        question=datasets.Value("string"),
        answers=datasets.List(datasets.Value("string")),
    )
    parquet.write_table(datasets.Dataset.from_list(rows).cast(features).data.table, folder / "train.parquet")
    corpus = load_corpus(f"hub:{folder}", domain="document", images_folder=tmp_path / "kept")
    assert [one.images for one in corpus] == [(folder / "images" / "a.png",), (folder / "there" / "b.png",)]
    assert [one.says.partition(";")[0] for one in corpus.problems] == [
        "image '../out.png' lies outside mine",
        f"image {str(tmp_path / 'out.png')!r} lies outside mine",
        f"image 'images/broken.png' is missing in {folder}: it is a link to nowhere.png, where nothing is",
    ]


def test_a_link_that_is_mended_is_found(folder):
    write_images(folder, "common", 1)
    rows = write_rows(folder, [row("common", 0), row("common", 0, image="images/broken.png")])
    assert len(read_folder(rows)[1]) == 1
    shutil.copy(folder / "images" / "a.png", folder / "images" / "nowhere.png")
    assert len(read_folder(rows)[1]) == 0
