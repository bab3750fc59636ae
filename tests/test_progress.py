"""Progress: questions, speed and time left; what an earlier process did is not this one's speed."""

from __future__ import annotations

import io
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from mmneuron_lens.batching import progress_bar
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.gather import Held, Memory, Piece, Shard, add, gather
from mmneuron_lens.batching.progress import Todo
from mmneuron_lens.batching.progress_bar import Shown
from mmneuron_lens.corpora.sample import Sample


def shown_lines(items, seconds, told="", **settings):
    """What a log is told where every piece takes so many seconds."""
    now, log = 0.0, io.StringIO()
    shown = Shown(items, "counting medical", None, log, clock=lambda: now, **settings)
    for _ in shown:
        shown.set_postfix_str(told)
        now += seconds
    return log.getvalue().splitlines()


def test_a_log_is_told_now_and_then_and_what_was_done_before_is_no_speed():
    todo = Todo(range(4), questions=[10, 10, 10, 10], before=960)
    assert shown_lines(todo, 20, "8,700 tokens/s") == [
        # Twenty questions in forty seconds: the other twenty take forty more.
        "counting medical: 980 of 1,000 questions, 0:40 left, 8,700 tokens/s",
        "counting medical: 1,000 of 1,000 questions, done in 1:20, 8,700 tokens/s",
    ]


def test_what_is_short_leaves_nothing_in_a_log():
    assert shown_lines(range(100), 0.09) == []
    assert shown_lines(range(100), 0.11) == ["counting medical: 100 of 100, done in 0:11"]


@pytest.mark.parametrize("columns", [60, 100])
def test_a_bar_fits_the_terminal_and_leaves_nothing_there(columns):
    file = io.StringIO()
    todo = Todo(range(4), questions=[10, 30, 10, 10], before=40)
    bar = partial(tqdm, file=file, ncols=columns)
    shown = Shown(todo, "counting medical", lambda **settings: bar(**{**settings, "mininterval": 0}))
    for _ in shown:
        shown.set_postfix_str("8,700 tokens/s")
    frames = file.getvalue().split("\r")
    assert all(len(frame) <= columns for frame in frames)
    assert any(frame.startswith("counting medical: 80 of 100 questions, 00:0") for frame in frames)
    assert any("left, 8,700 tokens/s" in frame for frame in frames) == (columns == 100)
    assert not frames[-1].strip()
    assert "\n" not in file.getvalue()


def test_a_notebook_is_shown_no_line_on_stderr(monkeypatch, capsys):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress_bar, "LONG", -1.0)
    assert list(progress_bar.bar(range(3), "counting medical")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.delitem(sys.modules, "IPython")
    assert list(progress_bar.bar(range(3), "counting medical")) == [0, 1, 2]
    assert capsys.readouterr().err == "counting medical: 3 of 3, done in 0:00\n"


def test_a_gather_that_goes_on_says_how_many_questions_are_there():
    samples = [Sample(str(number), "medical", (Path("none.png"),), "?", "") for number in range(7)]
    steps = [Step(0, tuple(samples[:3])), Step(0, tuple(samples[3:5])), Step(0, tuple(samples[5:]))]
    keeper, asked = Memory(), []

    def piece(some):
        return Piece(0, {"n": torch.ones(1)}, tuple(one.id for one in some))

    def run(step, opener):
        return piece(step.samples)

    def progress(items, name):
        asked.append((len(items), items.questions, items.before))
        return items

    keeper.keep(Held(0, 1, piece(samples[:3])))
    gather(steps, run, add, keeper=keeper, progress=progress)
    # Of a shard, its own questions alone.
    gather(steps, run, add, keeper=Memory(), shard=Shard(2, 3), progress=progress)
    assert asked == [(2, (2, 2), 3), (1, (2,), 0)]
