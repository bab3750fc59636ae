"""Tables in terminals of any width: every number whole, every column there, no line too long."""

from __future__ import annotations

import io
import re

import polars as pl
import pytest
from rich.console import Console

from mmneuron_lens.report.fitting import fitted
from mmneuron_lens.report.terminal import terminal_table, with_intervals

FRAME = pl.DataFrame(
    {
        "model": ["embedded/llava-next"] * 2,
        "module": ["Vision Encoder †", "MLP Projector"],
        "memberships": [123_456, 1],
        "log_odds": [1.7312, 1.7771],
        "log_odds_low": [1.6789, 1.6271],
        "log_odds_high": [1.8351, 1.9581],
        "held_out": [-1.7443, 1.7791],
        "held_out_low": [-1.6641, 1.6301],
        "held_out_high": [-1.8421, 1.9361],
        "above": [1.0, 0.5],
    }
)


def printed(width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for part in fitted(terminal_table(with_intervals(FRAME), "Effect sizes", "† cannot reach the logits"), width):
        console.print(part)
    return console.export_text()


@pytest.mark.parametrize("width", [44, 60, 80, 100, 200])
def test_every_number_is_whole_and_no_line_is_too_long(width):
    text = printed(width)
    assert max(map(len, text.splitlines())) <= width
    for whole in ("123,456", "1.731 [1.679, 1.835]", "−1.74 [−1.66, −1.84]", "1.000", "0.500"):
        assert whole in text
    for name in ("memberships", "log odds", "held out", "above", "Vision Encoder †", "MLP Projector"):
        assert name in text
    assert "…" not in text
    assert text.count("† cannot reach the logits") == 1
    assert text.rstrip().endswith("† cannot reach the logits")


def test_one_table_where_there_is_room_and_several_with_the_rows_named_where_not():
    wide, narrow = printed(100), printed(44)
    assert "continued" not in wide
    assert (wide.count("MLP Projector"), narrow.count("continued")) == (1, narrow.count("MLP Projector") - 1)
    assert narrow.count("MLP Projector") == 4


def test_words_alone_that_do_not_fit_are_broken_and_not_lost():
    frame = pl.DataFrame({"site": ["llm.mlp.act"], "path": ["model.language_model.layers.*.mlp.act_fn"]})
    console = Console(width=40, record=True, file=io.StringIO())
    (part,) = fitted(terminal_table(frame, "Sites"), 40)
    console.print(part)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 40
    cells = [re.split("│", line)[2].strip() for line in text.splitlines() if line.startswith("│")]
    assert "".join(cells) == "model.language_model.layers.*.mlp.act_fn"
