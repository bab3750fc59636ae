"""docs/known-faults.md: every fault has a test or a reason, and the record of mutations covers every test named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import mutations  # noqa: E402

TESTS = mutations.tests_by_row(ROOT)
PLANTED = mutations.mutations(ROOT)
OURS = mutations.language_faults(ROOT)


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "known-faults.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d+ \|", line)]


def test_sixty_faults_each_with_a_test_or_a_reason():
    assert [int(row[0]) for row in rows()] == list(range(1, 61))
    for number, _, caught, reason in rows():
        assert caught != "—" or reason, f"fault {number} has neither"
    assert [int(row[0]) for row in rows() if row[2] != "—"] == list(TESTS)


@pytest.mark.parametrize("number", TESTS)
def test_every_test_named_exists_and_its_fault_can_be_planted(number):
    file, name = TESTS[number].split("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), TESTS[number]
    mutation = PLANTED[number]
    assert mutations.planted(ROOT, mutation) != (ROOT / mutation["file"]).read_text(encoding="utf-8")
    assert mutation["file"].startswith(("mmneuron_lens/", "interventions/"))


def assert_recorded_red(kind: str, tests: dict[int, str]) -> None:
    """The log that the page names says that every test failed with its fault, and none without one."""
    (log,) = re.findall(rf"benchmarks/{kind}-[\d-]+\.log", (ROOT / "docs" / "known-faults.md").read_text("utf-8"))
    *lines, summary = (ROOT / log).read_text(encoding="utf-8").splitlines()
    recorded = {int(line[:2]): line[3:].split(" (")[0] for line in lines}
    assert recorded == {number: f"red   {test}" for number, test in tests.items()}
    assert re.match(rf"{len(tests)} of {len(tests)} faults make their test fail; without a fault: \d+ passed", summary)


def test_the_record_says_red_for_every_row_that_names_a_test():
    assert list(PLANTED) == list(TESTS)
    assert_recorded_red("mutations", TESTS)


def test_the_page_lists_the_faults_of_the_language_and_the_record_says_red_for_each():
    lines = (ROOT / "docs" / "known-faults.md").read_text(encoding="utf-8").splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| L\d+ \|", line)]
    assert found == [[f"L{number}", one["fault"], f"`{one['test']}`"] for number, one in OURS.items()]
    assert list(OURS) == list(range(1, len(OURS) + 1))
    assert_recorded_red("language-mutations", {number: one["test"] for number, one in OURS.items()})


@pytest.mark.parametrize("number", OURS)
def test_every_fault_of_the_language_can_be_planted_and_its_test_exists(number):
    file, name = OURS[number]["test"].split("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), OURS[number]["test"]
    assert mutations.planted(ROOT, OURS[number]) != (ROOT / OURS[number]["file"]).read_text(encoding="utf-8")
    assert OURS[number]["file"].startswith(("mmneuron_lens/", "interventions/"))


def test_a_fault_that_cannot_be_planted_is_said():
    with pytest.raises(ValueError, match=r"graph.py has 'no such text' 0 times, not once"):
        mutations.planted(ROOT, {"file": "interventions/graph.py", "old": "no such text", "new": ""})
