"""One store: a value is known by everything it depends on, made once, and never replaced by another one unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import pictures, tiny_lens
from drawn_corpus import row, write_corpus, write_images, write_rows

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.answers import Answers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.batching.gather import Memory, Piece, add, gather
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.experiments.entropy import read_entropy
from mmneuron_lens.runs.api import identify
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.folder import key_of
from mmneuron_lens.runs.keys import Key, differences
from mmneuron_lens.runs.store import Store, StoreConflict


def count(lens: Lens, samples, out: Path, **settings) -> Counts | None:
    return count_stage(lens, {"common": list(samples)}, Store(out), **{"batch_size": 2, **settings})["common"]


@pytest.fixture
def samples(tmp_path):
    return read_folder(write_corpus(tmp_path / "corpus", ("common",), images=3))[0]


def test_a_second_frame_that_changes_is_another_question(tmp_path):
    lens = tiny_lens("llava_next")
    write_images(tmp_path, "common", 2)
    frames = ["images/common0.png", "images/common1.png"]
    asked, _ = read_folder(write_rows(tmp_path, [row("common", 0, image=None, images=frames)]))
    count(lens, asked, tmp_path / "run")
    pictures((50, 64), seed=9)[0].save(tmp_path / frames[1])
    with pytest.raises(StoreConflict, match="corpus sha256 is"):
        count(lens, asked, tmp_path / "run")


def test_less_of_a_corpus_another_dtype_and_another_checkpoint_are_other_counts(tmp_path, samples):
    module, processor = tiny_lens("llava_next").module, tiny_lens("llava_next").processor
    run, folders = tmp_path / "run", [tmp_path / side / "checkpoint-500" for side in ("one", "other")]
    for folder in folders:
        module.save_pretrained(folder)
        processor.save_pretrained(folder)
        with torch.no_grad():
            module.get_output_embeddings().weight[3] += 1
    lens = Lens(folders[0])
    count(lens, samples, run)
    (file,) = run.rglob("*.safetensors")
    before = file.read_bytes()
    with pytest.raises(StoreConflict, match="corpus questions is 6 there and 4 here"):
        count(lens, samples[:4], run)
    with pytest.raises(StoreConflict, match='dtype is "float32" there and "bfloat16" here'):
        count(Lens(folders[0], dtype="bfloat16"), samples, run)
    other = Lens(folders[1])
    assert other.name == lens.name == "checkpoint-500"
    with pytest.raises(StoreConflict, match=r"fingerprint is .* Give another folder with --out, or --replace"):
        count(other, samples, run)
    assert file.read_bytes() == before


def test_domains_whose_names_look_alike_have_files_of_their_own():
    names = ["road/signs", "road--signs", "road+signs", "Road/signs", "road_signs", "road signs", "con", "CON", ".", ""]
    paths = [key_of("counts", "m", name, facts={}).path for name in names]
    assert len({path.lower() for path in paths}) == len(names)
    assert all(path.count("/") == 2 for path in paths)


def test_what_differs_is_named_and_a_key_stays_in_its_folder(tmp_path):
    first = {"model id": "m", "corpus": {"questions": 3, "name": "a"}, "only": 1}
    other = {"model id": "m", "corpus": {"questions": 4, "name": "a"}, "new": [1]}
    assert differences(first, other) == [
        "corpus questions is 3 there and 4 here",
        "new is null there and [1] here",
        "only is 1 there and null here",
    ]
    # Keys as they come back from JSON are those that were given.
    assert differences({"kinds": ["a"]}, {"kinds": ("a",)}) == []
    for path in ("/counts/a", "../a", "counts/../../a"):
        with pytest.raises(InvalidValue, match="leaves the run's folder"):
            Store(tmp_path).path(Key(path, {}))


def test_a_value_is_made_once_and_what_a_kill_left_half_written_is_swept(tmp_path):
    said, made = [], []
    store, key = Store(tmp_path, say=said.append), Key("answers/m.jsonl", {"seed": 0})

    def make(keeper):
        made.append(keeper)
        return Answers((), {"seed": 0})

    (tmp_path / "answers").mkdir()
    partial = tmp_path / "answers" / ".m.jsonl.0123456789abcdef.partial"
    partial.write_text("half")
    for _ in range(2):
        assert store.get_or_make(key, make, Answers, what="asking").settings == {"seed": 0}
    assert (len(made), said) == (1, ["asking", "already done: asking"])
    assert not partial.exists()
    with pytest.raises(StoreConflict, match="seed is 0 there and 1 here"):
        store.get_or_make(replace(key, facts={"seed": 1}), make, Answers)
    # A file that was saved by hand says nothing of what it is.
    Answers((), {}).save(tmp_path / "answers" / "m.jsonl")
    with pytest.raises(StoreConflict, match="seed is null there and 0 here"):
        store.get_or_make(key, make, Answers)
    Store(tmp_path, replace=True).get_or_make(key, make, Answers)
    assert len(made) == 2
    # Without a folder nothing is kept.
    Store(None).get_or_make(key, make, Answers)
    assert isinstance(made[-1], Memory)


def test_the_public_call_and_the_stages_are_one_run(tmp_path, samples):
    lens, corpus = tiny_lens("instructblip"), load_corpus(write_corpus(tmp_path / "two", images=4))
    lengths = []

    def progress(items, name):
        lengths.append(name)
        return items

    settings = {"batch_size": 4, "permutations": 2, "progress": progress}
    first = identify(lens, corpus, out=tmp_path / "run", **settings)
    steps = len(lengths)
    again = identify(lens, corpus, out=tmp_path / "run", **settings)
    alone = identify(lens, corpus, **settings)
    assert len(lengths) == 2 * steps
    for site, mask in first.selection.masks.items():
        assert torch.equal(again.selection.masks[site], mask)
        assert torch.equal(alone.selection.masks[site], mask)
    with pytest.raises(StoreConflict, match=r"fraction is 0\.01 there and 0\.02 here"):
        identify(lens, corpus, out=tmp_path / "run", fraction=0.02, **settings)


def test_float_sums_of_a_run_that_was_stopped_have_the_bits_of_one_that_was_not(tmp_path, samples):
    lens = tiny_lens("llava_next")
    whole = read_entropy(lens, samples, batch_size=1)
    keeper = Memory()

    class Stopped(Exception):
        pass

    def stops(items, name):
        yield from items[:2]
        raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            read_entropy(lens, samples, batch_size=1, keeper=keeper, progress=stops)
    resumed = read_entropy(lens, samples, batch_size=1, keeper=keeper)
    for name in ("entropy", "confidence", "below", "tokens"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))


def test_the_order_of_a_fold_is_the_order_of_the_steps():
    from mmneuron_lens.batching.batches import Step

    values = torch.randn(40, generator=torch.Generator().manual_seed(0)).double() * 10.0 ** torch.arange(40)
    steps = [Step(0, ()) for _ in values]
    by_hand = values[0]
    for value in values[1:]:
        by_hand = by_hand + value
    keeper, done = Memory(), []

    def run(step, opened):
        if len(done) % 7 == 6:
            done.append(-1)
            raise KeyboardInterrupt
        place = len([one for one in done if one >= 0])
        done.append(place)
        return Piece(0, {"sum": values[place]})

    while True:
        try:
            (found,) = gather(steps, run, add, keeper=keeper)
            break
        except KeyboardInterrupt:
            continue
    assert done.count(-1) > 3
    assert torch.equal(found.piece.tensors["sum"], by_hand)
