"""The fuzz, larger than in the tests: bad input of every kind; each piece is used or named, and nothing ends.

    python benchmarks/fuzz.py --each 4000

Every group of `GROUPS` draws its kinds with a seed and says what became of each piece: "used" or "named", as its test
asserts. Anything else, a warning too, is a failure. Writes benchmarks/fuzz-DATE.log; exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import mmneuron_lens  # noqa: E402, F401, I001  (first: it imports beartype before nnsight)
import damaged_artifacts as damaged_files  # noqa: E402
import damaged_pictures  # noqa: E402
import PIL  # noqa: E402
import test_artifact_damage as artifacts  # noqa: E402
import test_hostile_answers_fuzz as hostile  # noqa: E402
import test_malformed_fuzz as malformed  # noqa: E402
import test_refused_rows_fuzz as refused  # noqa: E402
import test_saved_graph_fuzz as saved_graph  # noqa: E402

from mmneuron_lens.artifacts.format import ArtifactError  # noqa: E402
from mmneuron_lens.corpora import records  # noqa: E402
from mmneuron_lens.corpora.records import RecordProblems  # noqa: E402

TOGETHER, MEMORY, SECONDS = 100, 2**31, 10
"""Pictures in one process, and what it may take beside what it begins with: bytes of memory, seconds a picture."""

Pieces = Iterator[tuple[str, Callable[[], Counter[str]]]]
"""Kinds of bad input, each with what uses some of it and counts what came of it."""


def malformed_records(each: int, seed: int, folder: Path) -> Pieces:
    """Of every published format, as many as the test has; its seeds are its own."""
    records.KEPT = 10**6
    formats = {
        "record of VQAv2, questions": partial(malformed.test_vqav2, broken="questions"),
        "record of VQAv2, annotations": partial(malformed.test_vqav2, broken="annotations"),
        "record of RSVQA": malformed.test_rsvqa,
        "record of DocVQA": malformed.test_docvqa,
        "record of PMC-VQA, version 1": partial(malformed.test_pmc_vqa, version=1),
        "record of PMC-VQA, version 2": partial(malformed.test_pmc_vqa, version=2),
        "record of LingoQA": malformed.test_lingoqa,
        "row of one's own corpus": malformed.test_a_folder_of_ones_own,
    }
    for number, (kind, test) in enumerate(formats.items()):
        place = folder / f"records{number}"

        def used(test: Callable[..., None] = test, place: Path = place) -> Counter[str]:
            place.mkdir()
            test(place)
            return Counter(named=malformed.RECORDS)

        yield kind, used


def pictures(each: int, seed: int, folder: Path) -> Pieces:
    """Whole, turned and damaged image files, a hundred in a process that may take `MEMORY` and `SECONDS` for each."""
    damaged_pictures.wholes()
    files = damaged_pictures.drawn(seed, each * len(damaged_pictures.KINDS))
    by_kind: dict[str, list[damaged_pictures.Drawn]] = {}
    for number, (kind, one) in enumerate(files, start=1):
        by_kind.setdefault(kind, []).append(one)
        if number % (TOGETHER * len(damaged_pictures.KINDS)) and number < each * len(damaged_pictures.KINDS):
            continue
        for name, some in by_kind.items():
            yield f"picture: {name}", partial(_within_limits, some, folder)
        by_kind = {}


def _within_limits(files: list[damaged_pictures.Drawn], folder: Path) -> Counter[str]:
    """What came of each file, in a process of their own; raises if it was ended, or one was as it must not be."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY + _address_space(), resource.RLIM_INFINITY))
        problems, came, says = RecordProblems(folder), Counter[str](), ""
        for number, one in enumerate(files):
            signal.alarm(SECONDS)
            try:
                came[malformed.outcome(folder / f"{number}.{one.ending}", one, problems)] += 1
            except BaseException as error:
                says = f"{number}: {type(error).__name__}: {error}"
        os.write(writing, json.dumps([came, says[:1000]]).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not told:
        raise RuntimeError(f"the process ended with {status}")
    came, says = json.loads(told)
    if says:
        raise RuntimeError(says)
    return Counter(used=came.get("decoded", 0), named=came.get("refused", 0))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()


def rows_that_only_a_model_refuses(each: int, seed: int, folder: Path) -> Pieces:
    """Among good rows, counted with each of four tiny models, a quarter of `each` rows with one."""
    for name in ("llava_next", "llava", "instructblip", "blip2"):
        place, counted = folder / name, Counter[str]()
        place.mkdir()

        def used(name: str = name, place: Path = place, counted: Counter[str] = counted) -> Counter[str]:
            counted.update(refused.refused_rows(place, name, each // 4, seed))
            return Counter(used=counted["good"])

        yield "row among these: good", used
        for fault in sorted(counted.keys() - {"good"}):
            yield f"row: {fault}", lambda found=counted[fault]: Counter(named=found)


def answers_of_a_server(each: int, seed: int, folder: Path) -> Pieces:
    """Exchanges with a server in which one thing is hostile, at every level from the wire to the values."""
    came = hostile.use(folder, each, seed)
    for level, counted in came.items():
        yield f"answer of a server: {level}", lambda counted=counted: counted


def saved_graphs(each: int, seed: int, folder: Path) -> Pieces:
    """Saved graphs, changed and sealed again."""
    yield "saved graph", lambda: saved_graph.use(folder, each, seed)


def damaged_artifacts(each: int, seed: int, folder: Path) -> Pieces:
    """Of every kind of file that a run writes: bytes that changed, and nonsense under a checksum that fits."""
    for name, made in artifacts.MADE.items():
        path, draw = folder / "artifact", random.Random(f"{seed} {name}")

        def used(how: str, made: Any = made, path: Path = path, draw: random.Random = draw) -> Counter[str]:
            made.save(path)
            content, came = path.read_bytes(), Counter[str]()
            for _ in range(each // 10):
                told = "bytes changed"
                if how == "sealed":
                    told = damaged_files.nonsense(made, path, draw)
                elif (damaged := damaged_files.flipped(content, draw)) == content:
                    continue
                else:
                    path.write_bytes(damaged)
                try:
                    type(made).load(path)
                except ArtifactError as error:
                    came["named" if str(error).startswith(f"{path}: ") else "FAILED"] += 1
                else:
                    raise AssertionError(f"{told}: was read")
            return came

        yield f"{name}: bytes changed", partial(used, "changed")
        yield f"{name}: nonsense, sealed", partial(used, "sealed")


GROUPS: tuple[Callable[[int, int, Path], Pieces], ...] = (
    malformed_records,
    pictures,
    rows_that_only_a_model_refuses,
    damaged_artifacts,
    answers_of_a_server,
    saved_graphs,
)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--each", type=int, default=4000, help="pieces of every kind that can be drawn without end")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only", default="", help="groups whose names contain this; writes no log")
    given = words.parse_args()
    warnings.simplefilter("error")
    # What Pillow logs of a file it refuses.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    came: dict[str, Counter[str]] = {}
    failures, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for group in (one for one in GROUPS if given.only in one.__name__):
            for kind, used in group(given.each, given.seed, Path(folder)):
                try:
                    found = used()
                except Exception as error:
                    found = Counter(FAILED=1)
                    failures.append(f"{kind}: {type(error).__name__}: {error}")
                came.setdefault(kind, Counter()).update(found)
    total = sum(came.values(), Counter[str]())
    title = (
        f"{total.total()} pieces of {len(came)} kinds, seed {given.seed}, Pillow {PIL.__version__}: "
        f"{total['used']} used, {total['named']} named in one line, {len(failures)} failures, "
        f"{time.monotonic() - began:.0f} s"
    )
    lines = [f"{kind:40} {one.total():7} {one['used']:7} used {one['named']:7} named" for kind, one in came.items()]
    if given.only:
        print("\n".join([title, *lines, *failures]))
        return 1 if failures else 0
    log = ROOT / "benchmarks" / f"fuzz-{datetime.date.today().isoformat()}.log"
    log.write_text("\n".join([title, *lines, *failures]) + "\n", encoding="utf-8")
    print(log.read_text(encoding="utf-8"), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
