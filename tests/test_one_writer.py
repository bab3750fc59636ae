"""Several processes in one run's folder: one writes a value, the others are told who, wait, or take what it wrote."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_lens
from drawn_corpus import files_of, write_corpus

from mmneuron_lens import Lens, load_corpus
from mmneuron_lens.batching.gather import WHOLE, Shard
from mmneuron_lens.runs import count as count_module
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.store import Store, StoreBusy

FORK = multiprocessing.get_context("fork")
PATIENCE = 60
"""Seconds after which a process that waits for another one fails."""

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@pytest.fixture(scope="module")
def lens() -> Lens:
    return tiny_lens("llava_next")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two domains, six images each, two questions an image."""
    return load_corpus(write_corpus(tmp_path_factory.mktemp("corpus"), images=6))


@pytest.fixture(scope="module")
def alone(lens, corpus, tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that one process made."""
    out = tmp_path_factory.mktemp("alone")
    count_stage(lens, corpus.by_domain(), Store(out), batch_size=1)
    return files_of(out)


def together(*works: Callable[[], str]) -> list[tuple[int, str]]:
    """Runs each in a process of its own, started at one moment; the process and what the work returned, in order."""
    start, told = FORK.Barrier(len(works)), [FORK.Pipe(duplex=False) for _ in works]

    def child(work: Callable[[], str], end: Any) -> None:
        start.wait(PATIENCE)
        end.send(work())

    processes = [FORK.Process(target=child, args=(work, end)) for work, (_, end) in zip(works, told, strict=True)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * PATIENCE)
    assert [process.exitcode for process in processes] == [0] * len(works)
    return [(process.pid or 0, end.recv()) for process, (end, _) in zip(processes, told, strict=True)]


def first(then: Callable[[], Any]) -> Progress:
    """A progress that does something before the first of the work, while the value is held."""

    def progress(work: Iterable[Any], title: str) -> Iterable[Any]:
        if work:
            then()
        return work

    return progress


def counting(lens: Lens, corpus: Any, out: Path, domain: str, then: Callable[[], Any], **settings: Any) -> str:
    samples = {domain: corpus.by_domain()[domain]}
    try:
        made = count_stage(lens, samples, Store(out), batch_size=1, progress=first(then), **settings)
        return "not whole" if made[domain] is None else "counted"
    except StoreBusy as error:
        return str(error)


def test_of_two_that_count_the_same_one_is_told_who_the_other_is(lens, corpus, alone, tmp_path) -> None:
    refused = FORK.Event()

    def work() -> str:
        # Whoever holds the value waits until the other has been refused.
        said = counting(lens, corpus, tmp_path, "common", lambda: refused.wait(PATIENCE) or os._exit(3))
        if said != "counted":
            refused.set()
        return said

    told = together(work, work)
    ((holder, _),) = [one for one in told if one[1] == "counted"]
    ((_, said),) = [one for one in told if one[1] != "counted"]
    file = file_of(tmp_path, "counts", lens.name, "common")
    assert said.startswith(f"{file} is being written by process {holder} (")
    assert said.endswith("); wait for it, or give another --out.")
    assert "\n" not in said
    assert files_of(tmp_path) == {name: content for name, content in alone.items() if "common" in name}


def test_two_that_count_different_domains_do_not_wait_for_each_other(lens, corpus, alone, tmp_path) -> None:
    both = FORK.Barrier(2)
    works = [
        lambda domain=domain: counting(lens, corpus, tmp_path, domain, lambda: both.wait(PATIENCE))
        for domain in ("common", "medical")
    ]
    assert [said for _, said in together(*works)] == ["counted", "counted"]
    assert files_of(tmp_path) == alone


def test_parts_of_one_count_at_once_are_the_whole(lens, corpus, alone, tmp_path, monkeypatch) -> None:
    begun, ended, asking = FORK.Barrier(3), FORK.Barrier(3), FORK.Barrier(3)
    count_steps, get_or_make = count_module.count_steps, Store.get_or_make

    def at_once(*arguments: Any, shard: Shard, **settings: Any) -> Any:
        found = count_steps(*arguments, shard=shard, **settings)
        if shard == WHOLE:
            return found
        # Each sees what is there when all have done their part.
        ended.wait(PATIENCE)
        return count_steps(*arguments, shard=shard, **settings)

    def as_well(store: Store, *arguments: Any, **settings: Any) -> Any:
        # All were the last, so all ask for the value: one makes it, and the others wait for it.
        asking.wait(PATIENCE)
        return get_or_make(store, *arguments, **settings)

    monkeypatch.setattr(count_module, "count_steps", at_once)
    monkeypatch.setattr(Store, "get_or_make", as_well)
    works = [
        lambda number=number: counting(
            lens, corpus, tmp_path, "medical", lambda: begun.wait(PATIENCE), shard=Shard(number, 3)
        )
        for number in (1, 2, 3)
    ]
    assert [said for _, said in together(*works)] == ["counted"] * 3
    assert files_of(tmp_path) == {name: content for name, content in alone.items() if "medical" in name}


def test_two_processes_of_one_part_are_told_apart(lens, corpus, alone, tmp_path) -> None:
    refused = FORK.Event()

    def work() -> str:
        then = lambda: refused.wait(PATIENCE) or os._exit(3)  # noqa: E731
        said = counting(lens, corpus, tmp_path, "common", then, shard=Shard(1, 2))
        if said != "not whole":
            refused.set()
        return said

    told = together(work, work)
    ((holder, _),) = [one for one in told if one[1] == "not whole"]
    ((_, said),) = [one for one in told if one[1] != "not whole"]
    assert f"is being written by process {holder} (" in said
    assert counting(lens, corpus, tmp_path, "common", lambda: None, shard=Shard(2, 2)) == "counted"
    assert files_of(tmp_path) == {name: content for name, content in alone.items() if "common" in name}


def test_a_part_beside_one_that_counts_everything_ends_with_the_same(lens, corpus, alone, tmp_path) -> None:
    part_runs, whole_ended = FORK.Event(), FORK.Event()

    def part() -> str:
        # In its work while another process makes the value, and removes the pieces.
        return counting(
            lens, corpus, tmp_path, "common",
            lambda: part_runs.set() or whole_ended.wait(PATIENCE) or os._exit(3), shard=Shard(1, 2),
        )  # fmt: skip

    def whole() -> str:
        part_runs.wait(PATIENCE)
        said = counting(lens, corpus, tmp_path, "common", lambda: None)
        whole_ended.set()
        return said

    assert [said for _, said in together(part, whole)] == ["counted", "counted"]
    assert files_of(tmp_path) == {name: content for name, content in alone.items() if "common" in name}


def test_a_holder_that_is_killed_holds_no_more(lens, corpus, alone, tmp_path) -> None:
    working = FORK.Event()

    def child() -> None:
        counting(lens, corpus, tmp_path, "common", lambda: working.set() or signal.pause())

    process = FORK.Process(target=child)
    process.start()
    try:
        assert working.wait(PATIENCE)
        assert f"is being written by process {process.pid} (" in counting(
            lens, corpus, tmp_path, "common", lambda: None
        )
    finally:
        process.kill()
        process.join(PATIENCE)
    assert counting(lens, corpus, tmp_path, "common", lambda: None) == "counted"
    assert files_of(tmp_path) == {name: content for name, content in alone.items() if "common" in name}
    assert not list((tmp_path / ".locks").glob("*.holder"))
