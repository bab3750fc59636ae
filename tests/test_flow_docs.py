"""docs/flow-and-probes.md: its blocks run from top to bottom, and its amounts are those of a plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmneuron_lens.runs.plan import BEYOND, Plan

PAGE = Path(__file__).parent.parent / "docs" / "flow-and-probes.md"


def test_the_page_runs_from_top_to_bottom(capsys) -> None:
    text, scope = PAGE.read_text(), dict[str, Any]()
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(code, "flow-and-probes.md", "exec"), scope)
    assert scope["found"].questions
    assert scope["probes"].right.shape[:2] == (2, 5)
    shown = capsys.readouterr().out
    assert "route" in shown
    assert "selectivity" in shown


def test_the_amounts_are_those_of_a_plan() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    told = {}
    for names, amounts in rows:
        numbers = [int(one.replace(",", "")) for one in re.findall(r"\d[\d,]*", amounts)]
        told |= dict(zip(re.findall(r"[a-z_]+", names), numbers, strict=True))
    assert told == {name: getattr(Plan(), name) for name in BEYOND}
