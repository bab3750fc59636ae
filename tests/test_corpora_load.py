"""`load_corpus`: every kind of source gives a `Corpus`, whole or the asked part, or one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_corpus import row, write_corpus, write_images, write_rows
from published_formats import make

from interventions.errors import MMNeuronError, OutOfRange, UnknownName
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.folder import CorpusError, read_folder, some_of
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.published import PUBLISHED, read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.metrics import score


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return make.write_all(tmp_path_factory.mktemp("corpora") / "papers", images=3)


@pytest.fixture
def mine(tmp_path) -> Path:
    """Images of a domain of the paper and of two of our own, in turn, and a row that is bad."""
    folder = tmp_path / "mine"
    for seed, name in enumerate(("food", "medical", "road")):
        write_images(folder, name, 3, seed)
    rows = [row(name, n, q) for n in range(3) for name in ("food", "medical", "road") for q in ("What?", "Why?")]
    for one in rows:
        one["domain"] = one["domain"].replace("road", "road/signs")
    return write_rows(folder, [*rows, row("food", 9)])


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MMNEURON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_of_ones_own_with_any_domains(mine):
    corpus = load_corpus(mine)
    samples, problems = read_folder(mine, None)
    assert list(corpus.by_domain()) == ["medical", "food", "road/signs"]
    assert sorted(one.id for one in corpus) == sorted(one.id for one in samples)
    assert (len(corpus), str(corpus.problems)) == (18, str(problems))
    assert (corpus.name, corpus.folder, dict(corpus.official)) == ("mine", mine, {})
    assert repr(corpus) == "Corpus(mine: 18 samples (medical 6, food 6, road/signs 6), 1 skipped)"
    assert load_corpus(str(mine), domains="food").by_domain().keys() == {"food"}
    part = load_corpus(mine, domains=["road/signs", "medical"], images=2, questions_per_image=1, seed=4)
    wanted = [one for one in samples if one.domain != "food"]
    assert list(part) == some_of(wanted, 2, 1, seed=4)


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_published_corpora_with_their_official_scores(published, split):
    corpus = load_corpus(published, split=split)
    expected = {domain: list(one) for domain, one in read_corpora(published, split).items()}
    assert tuple(corpus.by_domain()) == DOMAINS
    assert {domain: sorted(some, key=str) for domain, some in corpus.by_domain().items()} == {
        domain: sorted(some, key=str) for domain, some in expected.items()
    }
    assert corpus.problems.rows >= len(corpus)
    assert len(corpus.problems) == 0
    assert corpus.official == {domain: one.name for domain, one in PUBLISHED.items()}
    documents = corpus.only("document")
    assert dict(documents.official) == {"document": "DocVQA"}
    said = {one.id: one.answers[0] for one in documents}
    assert score(documents.official["document"], documents, said).overall.value == 100
    if split == "train":
        assert list(load_corpus(published)) == list(corpus)


def test_a_part_of_published_corpora_is_the_part_of_all_of_them(published):
    part = load_corpus(published, images=2, questions_per_image=1, seed=3)
    assert list(part) == list(load_corpus(published).some(2, 1, seed=3))
    assert {len({one.images for one in some}) for some in part.by_domain().values()} == {2}
    assert list(load_corpus(published, domains=["medical"]).by_domain()) == ["medical"]
    phili = load_corpus(make_test_phili(published), split="test_phili")
    assert list(phili.by_domain()) == ["remote_sensing"]


def make_test_phili(published: Path) -> Path:
    make.write_rsvqa(published / "rsvqa", "test_phili", 2)
    return published


def test_bad_records_of_all_published_corpora_are_in_one_list(tmp_path):
    folder = make.write_all(tmp_path / "papers", images=2)
    for name in ("vqav2/train2014", "docvqa/documents"):
        next(iter(sorted((folder / name).iterdir()))).unlink()
    corpus = load_corpus(folder)
    text = str(corpus.problems)
    assert isinstance(corpus.problems, RecordProblems)
    assert "COCO_train2014" in text
    assert "docvqa" in text
    assert corpus.problems.rows == len(corpus) + len(corpus.problems)
    assert len(load_corpus(make.write_all(tmp_path / "whole", images=2))) == corpus.problems.rows
    # Ids of two corpora may be the same; an unreadable image of each is named.
    one, other = (Sample("1", domain, (), "?", ()) for domain in ("common", "document"))
    before = len(corpus.problems)
    for sample in (one, other, one):
        corpus.problems.add_sample(sample, "image cannot be decoded")
    assert len(corpus.problems) == before + 2


def test_a_corpus_known_by_name_is_drawn_into_the_cache_once(cache, monkeypatch):
    corpus = load_corpus("drawn", images=2, domains=["medical", "document"])
    assert (corpus.name, dict(corpus.official)) == ("drawn", {})
    assert list(corpus.by_domain()) == ["medical", "document"]
    assert {len({one.images for one in some}) for some in corpus.by_domain().values()} == {2}
    assert corpus.folder.is_relative_to(cache)
    again = load_corpus("drawn", images=2, domains=["document", "medical"])
    assert (list(again), again.folder) == (list(corpus), corpus.folder)
    assert load_corpus("drawn", images=2, domains="medical", seed=1).folder != corpus.folder
    few = load_corpus("drawn", images=2, domains=["medical", "document"], questions_per_image=2)
    assert len(few) == 8


def test_a_folder_that_is_called_like_a_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("drawn"), images=1)
    for source in (Path("drawn"), "./drawn", str(tmp_path / "drawn")):
        assert load_corpus(source).folder == tmp_path / "drawn"
    assert not cache.exists()


def test_a_corpus_is_a_sequence_whose_parts_are_corpora(mine):
    corpus = load_corpus(mine)
    assert corpus[0] == corpus.samples[0]
    assert corpus[-1] == list(corpus)[-1]
    part = corpus[2:5]
    assert isinstance(part, Corpus)
    assert (part.samples, part.name, part.problems) == (corpus.samples[2:5], "mine", corpus.problems)
    assert corpus[0] in corpus
    assert corpus.index(corpus[3]) == 3
    first, rest = corpus.some(images=1), corpus.some(skip_images=1)
    assert sorted(one.id for one in (*first, *rest)) == sorted(one.id for one in corpus)
    assert not {one.images for one in first} & {one.images for one in rest}
    with pytest.raises(OutOfRange, match=r"corpus mine has no sample 18; it has 18, from 0\."):
        corpus[18]
    with pytest.raises(UnknownName, match=r"mine has no good row of fod; it has medical, food, road/signs\."):
        corpus.only(["food", "fod"])
    with pytest.raises(AttributeError):
        corpus.name = "other"  # pyright: ignore


ANY = r"give a folder with questions\.jsonl, a folder with subfolders vqav2, .*, hub:OWNER/NAME, or a name: .*drawn"
REFUSED = {
    "nowhere": ("nowhere", {}, rf"nowhere is neither a folder nor the name of a corpus; {ANY}"),
    "empty folder": ("EMPTY", {}, rf"empty holds no corpus; {ANY}"),
    "no image": ("MINE", {"images": 0}, r"images is 0; it must be 1 or more, or left out for all\."),
    "no question": ("MINE", {"questions_per_image": -1}, r"questions_per_image is -1; it must be 1 or more"),
    "split of a folder": ("MINE", {"split": "train"}, r"split='train' is no argument for a folder with questions"),
    "split of a name": ("drawn", {"split": "val"}, r"split='val' is no argument for corpus 'drawn'; leave it out\."),
    "revision of files": ("PUBLISHED", {"revision": "1"}, r"revision='1' is no argument for a folder of published"),
    "domain of a folder": ("MINE", {"domain": "medical"}, r"domain='medical' is no argument for a folder with"),
    "domains of the hub": ("hub:a/b", {"domains": "medical"}, r"domains='medical' is no argument for a hub data set"),
    "hub without domain": ("hub:a/b", {}, r"hub:a/b: say whose columns it has, domain= one of common, remote_sensing"),
    "unknown hub domain": ("hub:a/b", {"domain": "food"}, r"unknown domain 'food'; choose from common"),
    "unknown domain": ("MINE", {"domains": "fod"}, r"mine has no good row of fod; it has medical, food, road/signs\."),
    "unknown drawn domain": ("drawn", {"domains": "fod"}, r"unknown domain 'fod': choose one of common"),
    "unknown published": ("PUBLISHED", {"domains": "fod"}, r"papers has no corpus of fod with that split; it has"),
    "unknown split": ("PUBLISHED", {"split": "dev"}, r"has a split 'dev'; choose from train, evaluation"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_corpus_is_refused_in_one_line(name, mine, published, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    source, settings, message = REFUSED[name]
    source = {"EMPTY": tmp_path / "empty", "MINE": mine, "PUBLISHED": published}.get(source, source)
    with pytest.raises(MMNeuronError, match=message) as raised:
        load_corpus(source, **settings)
    assert "\n" not in str(raised.value)


def test_a_corpus_without_a_good_row_names_the_first_bad_one(tmp_path):
    folder = make.write_all(tmp_path / "papers", images=1)
    for file in (folder / "docvqa" / "documents").iterdir():
        file.unlink()
    with pytest.raises(CorpusError, match=r"papers has no good row among 2\. The first: .*record 1 \(questionId"):
        load_corpus(folder, domains="document")
    with pytest.raises(CorpusError, match=r"has no good row among 1\. The first: .*is missing; add the file"):
        load_corpus(write_rows(tmp_path, [row("food", 9)]))
