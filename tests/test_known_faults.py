"""docs/known-faults.md: every fault of the published code has a test that exists, or a reason."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "known-faults.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d+ \|", line)]


def test_sixty_faults_each_with_a_test_or_a_reason():
    assert [int(row[0]) for row in rows()] == list(range(1, 61))
    for number, _, caught, reason in rows():
        assert caught != "—" or reason, f"fault {number} has neither"


def test_every_test_named_exists():
    named = [re.fullmatch(r"`(tests/.*)::(test_\w+)`", row[2]) for row in rows() if row[2] != "—"]
    assert len(named) > 50
    for found in named:
        assert found is not None
        file, name = found.groups()
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), found.group()
