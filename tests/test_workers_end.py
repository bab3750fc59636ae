"""Processes that decode images end with the process that started them, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from drawn_corpus import write_corpus

from mmneuron_lens.batching import prefetch
from mmneuron_lens.corpora.folder import read_folder

PATIENCE = 30
SOON = 5
"""Seconds within which a worker is gone; it takes milliseconds, on a machine that is not busy."""

COUNTING = """
import sys
import mmneuron_lens
from mmneuron_lens.cli import app
from mmneuron_lens.batching import gather

def stopped(self, tokens):
    # In the middle of the count, with the workers decoding ahead.
    print("counting", flush=True)
    sys.stdin.read()

gather.Throughput.tell = stopped
app(sys.argv[1:])
"""


def outlived(parent: psutil.Process, count: int) -> list[psutil.Process]:
    """Kills a process and returns those of its children that are alive some seconds later."""
    workers = parent.children(recursive=True)
    assert len(workers) >= count
    parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=SOON)
    for one in alive:
        one.kill()
    return alive


def test_workers_of_a_killed_count_are_gone(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", images=12)
    words = ["count", "--model", "embedded/llava-next", "--corpus", str(corpus), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", COUNTING, *words, "--workers", "3", "--batch-size", "1"]
    main = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert main.stdout is not None
        assert b"counting" in main.stdout.readline()
        assert outlived(psutil.Process(main.pid), 3) == []
    finally:
        main.kill()
        main.communicate()


def loading(corpus: Path, told: Any, stuck: bool) -> None:
    """Decodes with workers; `stuck`: in which an image never ends."""

    def waiting(*_: Any) -> None:
        told.send("begun")
        signal.pause()

    if stuck:
        prefetch.open_images = waiting  # type: ignore[assignment]
    samples, _ = read_folder(corpus)
    openers = prefetch.decoded_ahead([[one] for one in samples], workers=2)
    for _ in range(2):
        next(openers)
        told.send("begun")
    signal.pause()


@pytest.mark.parametrize("stuck", [False, True], ids=["with full queues", "in the middle of an image"])
def test_a_worker_ends_whatever_it_is_doing(tmp_path: Path, stuck: bool) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("common",), images=20)
    context = multiprocessing.get_context("fork")
    listening, told = context.Pipe(duplex=False)
    main = context.Process(target=loading, args=(corpus, told, stuck))
    main.start()
    try:
        for _ in range(2):
            assert listening.poll(PATIENCE)
            listening.recv()
        assert outlived(psutil.Process(main.pid), 2) == []
    finally:
        main.kill()
        main.join(PATIENCE)


def test_a_parent_that_was_gone_before_its_worker_looked_is_seen() -> None:
    """The worker begins to watch only when its parent is dead, in whose place another process adopted it."""
    listening, told = multiprocessing.Pipe(duplex=False)
    parent = os.fork()
    if parent == 0:
        started, start = multiprocessing.Pipe(duplex=False)

        def worker() -> None:
            start.close()
            told.send(os.getpid())
            # Until the parent is dead.
            multiprocessing.connection.wait([started])
            prefetch.end_with_parent()
            signal.pause()

        multiprocessing.get_context("fork").Process(target=worker).start()
        signal.pause()
    assert listening.poll(PATIENCE)
    worker = psutil.Process(listening.recv())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    _, alive = psutil.wait_procs([worker], timeout=SOON)
    for one in alive:
        one.kill()
    assert alive == []
