"""Mutations: every known fault of the published code planted in ours, to see that the test named for it fails.

    python benchmarks/mutations.py            all rows of docs/known-faults.md that name a test
    python benchmarks/mutations.py 9 35 57    some of them, and no log
    python benchmarks/mutations.py --language faults that the language could have had, of tests/language_faults.toml

A row of `tests/known_faults.toml` is a file, a text that stands in it once, and the text that plants the fault; one of
`tests/language_faults.toml` says what is wrong and names its test besides. Each is planted in a copy of the repository,
by itself, and the row's test is run there; before, all of them are run without a fault. Writes
benchmarks/mutations-DATE.log, or language-mutations-DATE.log: a line a row, what the test said, the counts at the end.
Exit code 1 if a test fails without its fault, or passes with it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).parent.parent


class Mutation(TypedDict):
    """A fault as a change of one file."""

    file: str
    old: str
    new: str


class LanguageFault(Mutation):
    """One that says what is wrong, and the test that must see it."""

    fault: str
    test: str


def mutations(root: Path) -> dict[int, Mutation]:
    """By row of docs/known-faults.md."""
    found = tomllib.loads((root / "tests" / "known_faults.toml").read_text(encoding="utf-8"))
    return {int(number): mutation for number, mutation in found.items()}


def language_faults(root: Path) -> dict[int, LanguageFault]:
    """By number."""
    found = tomllib.loads((root / "tests" / "language_faults.toml").read_text(encoding="utf-8"))
    return {int(number): fault for number, fault in found.items()}


def tests_by_row(root: Path) -> dict[int, str]:
    """The test that each row of docs/known-faults.md names."""
    lines = (root / "docs" / "known-faults.md").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"\| (\d+) \|.*?\| `(tests/\S+::\w+)` \|", line) for line in lines)
    return {int(one[1]): one[2] for one in found if one}


def planted(root: Path, mutation: Mutation) -> str:
    """The file with the fault in it. Raises `ValueError` where it cannot be planted."""
    text = (root / mutation["file"]).read_text(encoding="utf-8")
    if text.count(mutation["old"]) != 1:
        raise ValueError(f"{mutation['file']} has {mutation['old']!r} {text.count(mutation['old'])} times, not once.")
    return text.replace(mutation["old"], mutation["new"])


def run_tests(root: Path, *tests: str) -> tuple[int, str]:
    """The exit code of pytest, and the last line that it wrote."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--tb=line", *tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1].strip("= ")


def killed(copy: Path, chosen: Mapping[int, Mutation], tests: Mapping[int, str]) -> dict[int, str]:
    """What each row's test said with the fault planted, in words, "red" where it failed."""
    said: dict[int, str] = {}
    for number, mutation in chosen.items():
        file = copy / mutation["file"]
        whole, started = file.read_text(encoding="utf-8"), time.monotonic()
        file.write_text(planted(copy, mutation), encoding="utf-8")
        code, last = run_tests(copy, tests[number])
        file.write_text(whole, encoding="utf-8")
        colour = {0: "GREEN", 1: "red"}.get(code, f"pytest ended with {code}")
        last = re.sub(r" in [\d.]+s.*", "", last)
        said[number] = f"{colour:5} {tests[number]} ({last}; {mutation['file']}; {time.monotonic() - started:.0f} s)"
        print(f"{number:2} {said[number]}", flush=True)
    return said


def _left_out(folder: str, names: list[str]) -> set[str]:
    return {".git", ".venv", "runs"} if Path(folder) == ROOT else {"__pycache__"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "rows", nargs="*", type=int, help="rows of docs/known-faults.md; all that name a test by default"
    )
    parser.add_argument("--language", action="store_true", help="faults of tests/language_faults.toml instead")
    given = parser.parse_args()
    rows = given.rows
    tests, every = tests_by_row(ROOT), mutations(ROOT)
    if given.language:
        faults = language_faults(ROOT)
        tests, every = {number: fault["test"] for number, fault in faults.items()}, dict[int, Mutation](faults)
    chosen = {number: every[number] for number in rows or sorted(every)}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=_left_out)
        code, last = run_tests(copy, *dict.fromkeys(tests[number] for number in chosen))
        print(f"without a fault: {last}", flush=True)
        said = killed(copy, chosen, tests)
    red = sum(line.startswith("red") for line in said.values())
    summary = f"{red} of {len(said)} faults make their test fail; without a fault: {last}"
    print(summary)
    if not rows:
        lines = [f"{number:2} {line}" for number, line in said.items()]
        kind = "language-mutations" if given.language else "mutations"
        log = ROOT / "benchmarks" / f"{kind}-{datetime.date.today()}.log"
        log.write_text("\n".join([*lines, summary, ""]), encoding="utf-8")
    return int(code != 0 or red < len(said))


if __name__ == "__main__":
    sys.exit(main())
