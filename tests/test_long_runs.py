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
from mmneuron_lens.experiments.identify import count_domain
from mmneuron_lens.runs.checkpoint import Checkpoint
from mmneuron_lens.runs.stages import count_stage

from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.batching.throughput import Pace
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.runs.merging import Shard, merge_runs, merge_shards, unfinished


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
def test_killed_at_any_write_and_started_again_ends_with_the_same_bytes(architecture, tmp_path):
    lens = tiny_lens(architecture)
    folder = damaged_corpus(tmp_path / "corpus")

    def count(out: Path):
        samples, problems = read_folder(folder)
        count_stage(lens, by_domain(samples), out, batch_size=3, seconds=0, corpus="mine", problems=problems)
        return problems

    problems = count(tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    assert sorted(Path(name).parts[0] for name in expected) == ["counts", "counts"]
    # Every kill leaves a little more done, each at another kind of moment.
    for kills in range(100):
        if not killed_at(1 + kills % 5, lambda: count(tmp_path / "killed")):
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
    assert [Path(name).name for name in sorted(expected)] == [
        "common.safetensors",
        "medical.safetensors",
        "problems.txt",
    ]
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
    count_stage(lens, by_domain(samples), tmp_path / "0", problems=problems, **settings)
    before = torch.get_rng_state()
    _, again = read_folder(tmp_path / "corpus")
    count_stage(lens, by_domain(samples), tmp_path / "2", problems=again, workers=2, **settings)
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


def test_processes_of_one_machine_count_shards_that_merge_into_the_bytes_of_one_run(tmp_path):
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
    merge_runs([tmp_path / "shards"], tmp_path / "merged")
    expected = files_of(tmp_path / "whole" / "counts")
    assert len(expected) == 1
    assert files_of(tmp_path / "merged" / "counts") == expected


def _command(words: list[str], environment: dict[str, str]) -> None:
    from mmneuron_lens.cli import app

    os.environ.update(environment)
    app(words)


def test_a_process_takes_the_gpu_of_its_rank(monkeypatch):
    from mmneuron_lens.architectures.loading import checked_device

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


def test_it_goes_on_where_it_was(tmp_path):
    lens = tiny_lens("llava_next")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))
    checkpoint = Checkpoint(tmp_path / "shards" / "common.safetensors", seconds=0)
    lengths = []

    def stops(items, name):
        lengths.append(len(items))
        yield from items[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_domain(lens, samples, batch_size=2, checkpoint=checkpoint, progress=stops)
    with pytest.raises(KeyboardInterrupt):
        count_domain(lens, samples, batch_size=2, checkpoint=checkpoint, progress=stops)
    assert lengths[0] - lengths[1] == 3
    with pytest.raises(
        ValueError, match=r"common\.safetensors: cannot go on with counts: provenance batch size is 2 and 3; use"
    ):
        count_domain(lens, samples, batch_size=3, checkpoint=checkpoint)
    other = tiny_lens("llava_next")
    weight = next(other.module.parameters())
    before = weight.detach().clone()
    weight.data.zero_()
    with pytest.raises(ValueError, match="cannot go on with counts: provenance fingerprint is"):
        count_domain(other, samples, batch_size=2, checkpoint=checkpoint)
    weight.data.copy_(before)
    resumed, whole = (count_domain(lens, samples, batch_size=2, checkpoint=some) for some in (checkpoint, None))
    assert resumed.provenance == whole.provenance
    for site in whole.active:
        assert torch.equal(resumed.active[site], whole.active[site])


def test_what_is_finished_is_not_counted_again_unless_it_differs(tmp_path):
    from mmneuron_lens import Lens

    lens = Lens.embedded("instructblip")
    samples, _ = read_folder(write_corpus(tmp_path / "corpus", ("common",), images=2))
    lengths = []

    def progress(items, name):
        lengths.append(len(items))
        return items

    for batch_size in (2, 2, 4):
        count_stage(lens, {"common": samples}, tmp_path, batch_size=batch_size, progress=progress)
    assert len(lengths) == 2
    (file,) = (tmp_path / "counts").rglob("*.safetensors")
    assert Counts.load(file).provenance["batch size"] == 4


def test_shards_merge_into_the_bytes_of_one_run_in_any_order(tmp_path):
    lens = tiny_lens("llava_next")
    samples, problems = read_folder(damaged_corpus(tmp_path / "corpus"))
    domains = by_domain(samples)
    settings = {"batch_size": 2, "corpus": "mine", "problems": problems}
    count_stage(lens, domains, tmp_path / "whole", **settings)
    machines = [tmp_path / f"machine {number}" for number in range(3)]
    for number, machine in enumerate(machines, start=1):
        count_stage(lens, domains, machine, shard=Shard(number, 3), **settings)
    expected = files_of(tmp_path / "whole" / "counts")
    for draw in range(3):
        files = merge_runs(random.Random(draw).sample(machines, 3), tmp_path / f"merged {draw}")
        assert len(files) == 2
        assert files_of(tmp_path / f"merged {draw}" / "counts") == expected
    # A copy of a shard is no second shard.
    merge_runs([*machines, machines[0]], tmp_path / "again")
    assert files_of(tmp_path / "again" / "counts") == expected
    with pytest.raises(ValueError, match=r"common: 2/3 of 3 missing; count them with --shard 2/3, or give the folder"):
        merge_runs([machines[0], machines[2]], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_does_not_belong_together_is_refused_with_the_difference(tmp_path):
    lens = tiny_lens("instructblip")
    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))
    first, second = (count_domain(lens, samples, batch_size=2, shard=Shard(number, 2)) for number in (1, 2))
    whole = count_domain(lens, samples, batch_size=2)
    assert merge_shards([second, first]).provenance == whole.provenance
    assert merge_shards([whole]).provenance == whole.provenance
    other = count_domain(lens, samples, batch_size=4, shard=Shard(2, 2))
    with pytest.raises(ValueError, match=r"provenance batch size is 2 and 4"):
        merge_shards([first, other])
    with pytest.raises(ValueError, match=r"provenance corpus is"):
        merge_shards([first, count_domain(lens, samples[:-1], batch_size=2, shard=Shard(2, 2))])
    with pytest.raises(ValueError, match=r'shard "1/2" is in both'):
        merge_shards([first, first])
    with pytest.raises(ValueError, match="some are of 2, some of 3 shards"):
        merge_shards([first, count_domain(lens, samples, batch_size=2, shard=Shard(3, 3))])
    with pytest.raises(ValueError, match="holds no finished shard; write one with `mmneuron count --shard 1/4"):
        merge_runs([tmp_path], tmp_path / "out")
    partial = unfinished(tmp_path / "common.1-of-2.safetensors")
    assert partial.name == "common.1-of-2.unfinished.safetensors"
    Checkpoint(partial).save(first, 1)
    with pytest.raises(ValueError, match="provenance batches done is None and 1"):
        merge_shards([second, Counts.load(partial)])


def test_shards_are_named_and_hold_every_batch_once():
    assert Shard.parse("2/4") == Shard(2, 4)
    assert Shard.parse("process", {"RANK": "1", "WORLD_SIZE": "3"}) == Shard(2, 3)
    assert sorted(batch for number in range(1, 5) for batch in Shard(number, 4).part(range(11))) == list(range(11))
    with pytest.raises(ValueError, match=r"shard '4' is not a number of a total; write 1/4, 2/4, \.\.\., or process"):
        Shard.parse("4")
    with pytest.raises(ValueError, match="shard 5/4 does not exist; choose from 1/4 to 4/4"):
        Shard.parse("5/4")
    with pytest.raises(ValueError, match="needs RANK and WORLD_SIZE"):
        Shard.parse("process", {})


def test_pace_is_told_beside_the_bar():
    class Bar(list):
        def set_postfix_str(self, text, refresh):
            self.append(text)

    now = iter([0.0, 4.0, 4.0, 5.0, 70.0])
    pace = Pace(bar := Bar(), lambda: next(now))
    pace.tell(8000)
    assert bar[0].startswith("2,000 tokens/s, ")
    assert [pace.due(60), pace.due(60), pace.due(60)] == [False, False, True]
