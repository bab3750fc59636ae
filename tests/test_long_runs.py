"""A count killed at any moment, or split over machines, ends with the very bytes of one that was left alone."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import random
import signal
import sys
from itertools import count as numbers
from pathlib import Path

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus

from mmneuron_lens import Lens
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.batching import gather as gathering
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.gather import Held, Memory, Piece, Shard, disjoint, gather, missing
from mmneuron_lens.batching.throughput import Throughput
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.entropy import read_entropy
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.merging import merge_runs
from mmneuron_lens.runs.store import Store, StoreBusy, StoreConflict


@pytest.fixture
def at_once(monkeypatch):
    """Every step is kept as soon as it is done."""
    monkeypatch.setattr(gathering, "SECONDS", 0.0)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run, by its place; locks, which hold nothing, apart."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def damaged_corpus(folder: Path) -> Path:
    """Two domains; one image of the first can be measured but not decoded."""
    write_corpus(folder, images=4)
    image = folder / "images" / "common2.png"
    image.write_bytes(image.read_bytes()[:-2000])
    return folder


def killed_at(moment: int, work) -> bool:
    """Does the work in a child that is killed at its so-manyth write to disk; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            moments = numbers(1)

            def then_killed(function):
                def call(*arguments):
                    if next(moments) == moment:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments)

                return call

            # Before a file's content is safe, and before it takes its name.
            os.fsync, os.replace = then_killed(os.fsync), then_killed(os.replace)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed in the child"
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("architecture", ["llava_next", "instructblip"])
def test_killed_at_any_write_and_started_again_ends_with_the_same_bytes(architecture, tmp_path, at_once):
    lens = tiny_lens(architecture)
    folder = damaged_corpus(tmp_path / "corpus")

    def count(out: Path):
        samples, problems = read_folder(folder)
        count_stage(lens, by_domain(samples), Store(out), batch_size=3, corpus="mine", problems=problems)
        return problems

    problems = count(tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    assert sorted(Path(name).parts[0] for name in expected) == ["counts", "counts"]
    # Many kills leave a little more done, each at another kind of moment.
    for kills in range(100):
        if not killed_at(1 + kills % 11, lambda: count(tmp_path / "killed")):
            break
    assert kills > 4
    assert files_of(tmp_path / "killed") == expected
    assert str(count(tmp_path / "killed")) == str(problems)
    assert [problem.line for problem in problems] == [5, 6]


def test_the_command_killed_at_random_moments_ends_with_the_same_files(tmp_path):
    """A few of the kills of benchmarks/kills.py."""
    place = Path(__file__).parent.parent / "benchmarks" / "kills.py"
    spec = importlib.util.spec_from_file_location("kills", place)
    kills = sys.modules["kills"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    corpus = kills.corpus_of(tmp_path / "corpus", images=4)
    longest = kills.undisturbed("llava-next", corpus, tmp_path / "whole")
    expected = kills.hashes(tmp_path / "whole")
    kinds = ["answers", *["controls"] * 3, "counts", "counts", "neurons.csv", "neurons.parquet", "problems.txt"]
    kinds += ["selection", "selection_wider"]
    assert sorted(Path(name).parts[0] for name in expected if ".lock" not in name) == kinds
    draws, killed = random.Random(0), 0
    # A process that is faster than its moment is not killed, and ends its run.
    for number in range(20):
        run = kills.killed_until_done("llava-next", corpus, tmp_path / f"{number}", expected, draws, longest, at_most=4)
        assert run.said == "every file equal"
        killed += run.kills
        if killed >= 4:
            break
    assert killed >= 4
    # And what it says of a run that ends otherwise.
    run = kills.killed_until_done("llava-next", corpus, tmp_path / "0", {"a": ""}, draws, longest, at_most=0)
    assert run.said == f"DIFFERENT: {', '.join(sorted(['a', *expected]))}"


@pytest.mark.parametrize("architecture", ["llava_next", "instructblip"])
def test_images_decoded_ahead_change_no_byte(architecture, tmp_path):
    lens = tiny_lens(architecture)
    samples, problems = read_folder(damaged_corpus(tmp_path / "corpus"))
    settings = {"batch_size": 3, "corpus": "mine"}
    count_stage(lens, by_domain(samples), Store(tmp_path / "0"), problems=problems, **settings)
    before = torch.get_rng_state()
    _, again = read_folder(tmp_path / "corpus")
    count_stage(lens, by_domain(samples), Store(tmp_path / "2"), problems=again, workers=2, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert files_of(tmp_path / "2") == files_of(tmp_path / "0")
    assert str(again) == str(problems)
    assert len(problems) == 2
    with pytest.raises(ValueError, match="workers is -1; it must be 0"):
        count_domain(lens, by_domain(samples)["medical"], workers=-1)
    with pytest.raises(ValueError, match=r"common2\.png: not an image that can be read"):
        count_domain(lens, by_domain(samples)["common"], workers=1)


def test_images_are_decoded_in_another_process(tmp_path, monkeypatch):
    from mmneuron_lens.batching import prefetch as ahead

    samples, _ = read_folder(write_corpus(tmp_path, ("common",), images=3))
    whole = [ahead.open_images(sample) for sample in samples]
    openers = list(ahead.decoded_ahead([samples[:4], samples[4:]], workers=2))
    monkeypatch.setattr(ahead, "open_images", None)
    for opened, some, expected in zip(openers, (samples[:4], samples[4:]), (whole[:4], whole[4:]), strict=True):
        for sample, pictures in zip(some, expected, strict=True):
            assert [one.tobytes() for one in opened(sample, None)] == [one.tobytes() for one in pictures]


def test_processes_of_one_machine_count_shards_that_end_as_the_bytes_of_one_run(tmp_path):
    """As `accelerate launch --num_processes 2 -m mmneuron_lens.cli count ... --shard process` sets them up."""
    corpus = write_corpus(tmp_path / "corpus", ("common",), images=4)
    words = ["count", "--model", "embedded/llava-next", "--corpus", str(corpus), "--batch-size", "2"]
    context = multiprocessing.get_context("fork")
    runs = [(["--out", str(tmp_path / "whole")], {})]
    runs += [
        (
            ["--out", str(tmp_path / "shards"), "--shard", "process"],
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    processes = [context.Process(target=_command, args=([*words, *more], given)) for more, given in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    expected = files_of(tmp_path / "whole")
    assert len(expected) == 1
    # The last of the processes that share a folder has brought their parts together.
    assert files_of(tmp_path / "shards") == expected
    merge_runs([tmp_path / "shards"], tmp_path / "merged")
    assert files_of(tmp_path / "merged") == expected


def _command(words: list[str], environment: dict[str, str]) -> None:
    from mmneuron_lens.cli import app

    os.environ.update(environment)
    app(words)


def test_a_process_takes_the_gpu_of_its_rank(monkeypatch):
    from mmneuron_lens.architectures.placement import checked_device

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checked_device(None) is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert checked_device(None) == "cuda:1"
    assert checked_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checked_device(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="cuda:2"):
        checked_device(None)


def test_it_goes_on_where_it_was(tmp_path, at_once):
    lens = tiny_lens("llava_next")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))
    lengths = []

    def stops(items, name):
        lengths.append(len(items))
        yield from items[:3]
        raise KeyboardInterrupt

    def count(of=lens, out="run", **settings):
        made = count_stage(of, {"common": samples}, Store(tmp_path / out), **{"batch_size": 2, **settings})
        return made["common"]

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            count(progress=stops)
    assert lengths[0] - lengths[1] == 3
    with pytest.raises(StoreConflict, match=r"common\.pieces holds another value: batch size is 2 there and 3 here"):
        count(batch_size=3)
    other = tiny_lens("llava_next")
    weight = next(other.module.parameters())
    before = weight.detach().clone()
    weight.data.zero_()
    with pytest.raises(StoreConflict, match="fingerprint is"):
        count(Lens.wrap(other.module, other.processor))
    weight.data.copy_(before)
    resumed, whole = count(), count(out="whole")
    assert resumed.provenance == whole.provenance
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    for site in whole.active:
        assert torch.equal(resumed.active[site], whole.active[site])


def test_what_is_finished_is_not_counted_again_and_never_replaced_unasked(tmp_path):
    lens = tiny_lens("instructblip")
    samples, _ = read_folder(write_corpus(tmp_path / "corpus", ("common",), images=2))
    lengths = []

    def progress(items, name):
        lengths.append(len(items))
        return items

    def count(batch_size, replace=False, **settings):
        settings |= {"batch_size": batch_size, "progress": progress}
        return count_stage(lens, {"common": samples}, Store(tmp_path / "run", replace=replace), **settings)["common"]

    first, again = count(2), count(2)
    assert len(lengths) == 1
    assert first.provenance == again.provenance
    written = files_of(tmp_path / "run")
    said = r"common\.safetensors holds another value: batch size is 2 there and 4 here\. Give another folder"
    with pytest.raises(StoreConflict, match=said):
        count(4)
    # A part of it is refused as the whole is, before anything is counted.
    with pytest.raises(StoreConflict, match=said):
        count(4, shard=Shard(1, 2))
    assert len(lengths) == 1
    assert files_of(tmp_path / "run") == written
    assert count(4, replace=True).provenance["batch size"] == 4
    (file,) = files_of(tmp_path / "run")
    assert Counts.load(tmp_path / "run" / file).provenance["batch size"] == 4


def test_shards_merge_into_the_bytes_of_one_run_in_any_order(tmp_path):
    lens = tiny_lens("llava_next")
    samples, problems = read_folder(damaged_corpus(tmp_path / "corpus"))
    domains = by_domain(samples)
    settings = {"batch_size": 2, "corpus": "mine", "problems": problems}
    count_stage(lens, domains, Store(tmp_path / "whole"), **settings)
    machines = [tmp_path / f"machine {number}" for number in range(3)]
    for number, machine in enumerate(machines, start=1):
        found = count_stage(lens, domains, Store(machine), shard=Shard(number, 3), **settings)
        assert found == {"common": None, "medical": None}
    expected = files_of(tmp_path / "whole")
    for draw in range(3):
        files = merge_runs(random.Random(draw).sample(machines, 3), tmp_path / f"merged {draw}")
        assert len(files) == 2
        assert files_of(tmp_path / f"merged {draw}") == expected
    # A copy of a shard is no second shard, and a run that is whole stays what it is.
    merge_runs([*machines, machines[0]], tmp_path / "again")
    merge_runs([machines[1], tmp_path / "whole"], tmp_path / "again")
    assert files_of(tmp_path / "again") == expected
    # In one folder, in any order, the last to finish makes the whole.
    for number in (2, 3, 1):
        found = count_stage(lens, domains, Store(tmp_path / "one"), shard=Shard(number, 3), **settings)
    assert all(isinstance(counts, Counts) for counts in found.values())
    assert files_of(tmp_path / "one") == expected
    with pytest.raises(ValueError, match=r"cannot merge counts/.*: .*of shards 2/3; count them with --shard 2/3"):
        merge_runs([machines[0], machines[2]], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_does_not_belong_together_is_refused_with_the_difference(tmp_path):
    lens = tiny_lens("instructblip")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))

    def count(out, shard, some=samples, batch_size=2):
        count_stage(lens, {"common": some}, Store(tmp_path / out), shard=shard, batch_size=batch_size)
        return tmp_path / out

    first, second = count("first", Shard(1, 2)), count("second", Shard(2, 2))
    with pytest.raises(StoreConflict, match=r"cannot merge .*first.* and .*: batch size is 2 there and 4 here"):
        merge_runs([first, count("other", Shard(2, 2), batch_size=4)], tmp_path / "out")
    with pytest.raises(StoreConflict, match=r"corpus questions is 10 there and 9 here; corpus sha256 is"):
        merge_runs([first, count("fewer", Shard(2, 2), samples[:-1])], tmp_path / "out")
    with pytest.raises(ValueError, match=r"are missing, of shards 2/2; count them with --shard 2/2"):
        merge_runs([first, first], tmp_path / "out")
    # Parts of another cut fill what is missing, step by step.
    count("thirds", Shard(2, 3)), count("thirds", Shard(3, 3))
    assert len(merge_runs([first, tmp_path / "thirds"], tmp_path / "filled")) == 1
    merge_runs([second, first], tmp_path / "halves")
    assert files_of(tmp_path / "halves") == files_of(tmp_path / "filled")
    with pytest.raises(ValueError, match="holds no counts; write some with `mmneuron count --shard 1/4"):
        merge_runs([tmp_path / "nothing"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_piece_is_made_again_and_a_damaged_value_is_an_error(tmp_path, at_once):
    lens = tiny_lens("llava_next")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))
    said: list[str] = []

    def count(out, **settings):
        store = Store(tmp_path / out, say=said.append)
        return count_stage(lens, {"common": samples}, store, batch_size=2, **settings)

    def flip(file: Path):
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)

    count("whole")
    count("run", shard=Shard(1, 2))
    (piece, *_) = (tmp_path / "run").rglob("*.pieces/*.safetensors")
    flip(piece)
    with pytest.raises(ArtifactError, match="is damaged"):
        merge_runs([tmp_path / "run"], tmp_path / "out")
    count("run")
    assert [line for line in said if f"{piece}: is damaged" in line and "moved aside, and is made again" in line]
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    (value,) = (tmp_path / "run").rglob("*.safetensors")
    flip(value)
    with pytest.raises(ArtifactError, match=rf"{value.name}: is damaged .*delete it and run the command"):
        count("run")


def test_one_process_at_a_time_writes_a_value_and_the_other_is_told_which(tmp_path):
    lens = tiny_lens("instructblip")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",), images=2))
    told, tell = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")

    def holds(items, name):
        tell.send("counting")
        tell.recv()
        return items

    def count(out="run", **settings):
        return count_stage(lens, {"common": samples}, Store(tmp_path / out), batch_size=2, **settings)

    other = context.Process(target=count, kwargs={"progress": holds})
    other.start()
    assert told.recv() == "counting"
    with pytest.raises(StoreBusy, match=rf"common\.safetensors is being written by process {other.pid} "):
        count()
    told.send("go on")
    other.join()
    assert other.exitcode == 0
    before = files_of(tmp_path / "run")
    count()
    assert files_of(tmp_path / "run") == before
    # Parts of one value have a writer each, and a hold ends with its process.
    first = {"out": "parts", "shard": Shard(1, 2)}
    other = context.Process(target=count, kwargs={"progress": holds, **first})
    other.start()
    assert told.recv() == "counting"
    with pytest.raises(StoreBusy, match=f"being written by process {other.pid} "):
        count(**first)
    assert count("parts", shard=Shard(2, 2)) == {"common": None}
    other.kill()
    other.join()
    count(**first)
    assert files_of(tmp_path / "parts") == before


def test_steps_are_done_once_whatever_the_pieces_that_are_there():
    steps = [Step(group, ()) for group in (0, 0, 0, 1, 1, 3)]
    ran: list[int] = []

    def run(step, opened):
        place = len(ran)
        ran.append(step.group)
        return Piece(step.group, {"sum": torch.tensor([place])}, (str(place),))

    keeper = Memory()
    keeper.keep(Held(3, 4, Piece(1, {"sum": torch.tensor([100])}, ("kept",))))
    found = gather(steps, run, gathering.add, keeper=keeper)
    assert ran == [0, 0, 0, 1, 3]
    told = [(one.first, one.last, int(one.piece.tensors["sum"])) for one in found]
    assert told == [(0, 3, 3), (3, 5, 103), (5, 6, 4)]
    assert found[1].piece.seen == ("kept", "3")
    assert gather(steps, run, gathering.add, keeper=keeper) == found
    assert len(ran) == 5
    # What overlaps is taken once, and what is left out is missing.
    pieces = [Held(0, 3, found[0].piece), Held(0, 2, found[0].piece), Held(2, 4, found[0].piece)]
    assert [(one.first, one.last) for one in disjoint(pieces)] == [(0, 3)]
    assert missing(range(5), disjoint(pieces)) == [3, 4]


def test_float_sums_of_a_run_that_was_stopped_have_the_bits_of_one_that_was_not(tmp_path):
    lens = tiny_lens("llava_next")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",), images=3))
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
            (found,) = gather(steps, run, gathering.add, keeper=keeper)
            break
        except KeyboardInterrupt:
            continue
    assert done.count(-1) > 3
    assert torch.equal(found.piece.tensors["sum"], by_hand)


def test_shards_are_named_and_hold_every_step_once():
    assert Shard.parse("2/4") == Shard(2, 4)
    assert Shard.parse("process", {"RANK": "1", "WORLD_SIZE": "3"}) == Shard(2, 3)
    assert sorted(place for number in range(1, 5) for place in Shard(number, 4).steps(11)) == list(range(11))
    with pytest.raises(ValueError, match=r"shard '4' is not a number of a total; write 1/4, 2/4, \.\.\., or process"):
        Shard.parse("4")
    with pytest.raises(ValueError, match="shard 5/4 does not exist; choose from 1/4 to 4/4"):
        Shard.parse("5/4")
    with pytest.raises(ValueError, match="needs RANK and WORLD_SIZE"):
        Shard.parse("process", {})


def test_throughput_is_told_beside_the_bar():
    class Bar(list):
        def set_postfix_str(self, text, refresh):
            self.append(text)

    now = iter([0.0, 4.0, 4.0, 5.0, 70.0])
    shown = Throughput(bar := Bar(), lambda: next(now))
    shown.tell(8000)
    assert bar[0].startswith("2,000 tokens/s, ")
    assert [shown.due(60), shown.due(60), shown.due(60)] == [False, False, True]
