"""Full disks: a run whose disk refuses one write after another; every file must come out equal.

    python benchmarks/full_disk.py --times 40

The work is that of `kills.py`: `mmneuron count`, then `select`, then `ablate`, on an embedded model. In a process of
its own, the n-th of the calls that reach the disk (making a folder, opening a file to write it, writing, flushing,
renaming) fails, and all that follow: the disk stays full. The process must end with exit code 1 and one line that names
a file of the run, and leave no part of a file. Then the same work on a disk with room must give, file by file, the
bytes of an undisturbed run. Where this may mount (`unshare -rm`), a disk is a tmpfs of a few sizes, too. Writes
benchmarks/full-disk-DATE.log; exit code 1 if any run differs or fails.
"""

from __future__ import annotations

import argparse
import builtins
import datetime
import errno
import io
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import mmneuron_lens  # noqa: E402, F401, I001  (first: it imports beartype before nnsight)
import torch  # noqa: E402
from kills import corpus_of, hashes  # noqa: E402

from mmneuron_lens.batching import gather  # noqa: E402
from mmneuron_lens.cli import app  # noqa: E402

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)
SIZES = ("20k", "60k", "150k", "400k", "1m")
"""Of the disks that are mounted."""

MODEL = "embedded/llava-next"


def commands(corpus: Path, out: Path) -> list[list[str]]:
    """The work, a command after another."""
    own = ["--model", MODEL, "--corpus", str(corpus)]
    asked = ["--random-draws", "1", "--max-new-tokens", "3", "--batch-size", "2"]
    return [
        ["count", *own, "--out", str(out), "--batch-size", "4"],
        ["select", str(out)],
        ["ablate", str(out), *own, *asked],
    ]


def work(corpus: Path, out: Path) -> tuple[int, str]:
    """Does the work in this process; the exit code of the first command that fails, and what it said."""
    torch.set_num_threads(1)
    gather.SECONDS = 0.2
    for words in commands(corpus, out):
        said, nowhere = io.StringIO(), io.StringIO()
        with redirect_stderr(said), redirect_stdout(nowhere):
            try:
                app(words)
            except SystemExit as ended:
                code = int(ended.code or 0)
        if code:
            return code, "\n".join(line for line in said.getvalue().splitlines() if line.startswith("mmneuron: "))
    return 0, ""


class Disk:
    """Stands before the calls that write below a folder, counts them, and refuses from one of them on."""

    def __init__(self, folder: Path, first: int | None, code: int) -> None:
        self.folder, self.first, self.code, self.calls = str(folder), first, code, 0

    def refuse(self, path: Any) -> None:
        """Raises the error of the disk if this call is of the folder and the disk is full by now."""
        if not isinstance(path, str | Path) or not str(path).startswith(self.folder):
            return
        self.calls += 1
        if self.first is not None and self.calls >= self.first:
            raise OSError(self.code, os.strerror(self.code))

    def stand_before(self) -> None:
        """For the rest of this process."""
        for name in ("mkdir", "replace"):
            setattr(os, name, self._asking(getattr(os, name)))
        opened, opened_low, synced = builtins.open, os.open, os.fsync

        def opening(file: Any, mode: str = "r", *more: Any, **settings: Any) -> Any:
            if {*mode} & {*"wxa+"}:
                self.refuse(file)
            made = opened(file, mode, *more, **settings)
            if {*mode} & {*"wxa+"} and str(file).startswith(self.folder):
                made.write = self._asking_for(file, made.write) if "b" in mode else made.write
            return made

        def opening_low(file: Any, flags: int, *more: Any, **settings: Any) -> int:
            if flags & os.O_CREAT:
                self.refuse(str(file))
            return opened_low(file, flags, *more, **settings)

        def syncing(descriptor: int) -> None:
            self.refuse(os.readlink(f"/proc/self/fd/{descriptor}"))
            synced(descriptor)

        builtins.open, os.open, os.fsync = opening, opening_low, syncing  # type: ignore[assignment]
        io.open = opening  # type: ignore[assignment]

    def _asking(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(path: Any, *more: Any, **settings: Any) -> Any:
            self.refuse(str(path))
            return call(path, *more, **settings)

        return asked

    def _asking_for(self, file: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*content: Any) -> Any:
            self.refuse(str(file))
            return call(*content)

        return asked


def in_a_process(corpus: Path, out: Path, first: int | None, code: int) -> tuple[int, str, int]:
    """The work in a process of its own on such a disk: exit code, what it said, and how many calls it made."""
    listening, told = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        disk = Disk(out, first, code)
        disk.stand_before()
        try:
            ended = work(corpus, out)
        except BaseException as error:
            ended = 2, f"{type(error).__name__}: {error}"
        told.send((*ended, disk.calls))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    told.close()
    try:
        return listening.recv()
    except EOFError:
        return 3, "ended without a word", 0
    finally:
        process.join()


def judged(code: int, said: str, corpus: Path, out: Path, expected: dict[str, str]) -> str:
    """What came of a run on a full disk, and of the same work on one with room."""
    parts = [path.name for path in out.rglob("*.partial")] if out.is_dir() else []
    if code != 1 or said.count("\n") or not said.startswith("mmneuron: ") or str(out) not in said:
        return f"FAILED with exit code {code}: {said}"
    if parts:
        return f"FAILED: left {', '.join(parts)}"
    code, again, _ = in_a_process(corpus, out, None, 0)
    if code:
        return f"FAILED again with exit code {code}: {again}"
    found = hashes(out)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        return f"DIFFERENT: {', '.join(different)}"
    return f"every file equal; said: {said.removeprefix('mmneuron: ').replace(str(out), 'RUN')}"


def mounted(corpus: Path, size: str, out: Path) -> tuple[int, str]:
    """The work on a tmpfs of this size, in a process that may mount one; what is on it is copied to `out`."""
    mounting = f"mount -t tmpfs -o size={size} none {out} && {sys.executable} {__file__} --work {corpus} {out}"
    copying = f"code=$?; mkdir -p {out}.kept && cp -a {out}/. {out}.kept; exit $code"
    out.mkdir()
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mounting}; {copying}"], capture_output=True, text=True)
    out.rmdir()
    Path(f"{out}.kept").rename(out)
    return done.returncode, done.stdout.strip()


def may_mount(folder: Path) -> bool:
    """Whether this user may mount a disk in a name space of their own."""
    asked = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)]
    return shutil.which("unshare") is not None and subprocess.run(asked, capture_output=True).returncode == 0


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--times", type=int, default=40, help="full disks")
    words.add_argument("--images", type=int, default=6, help="images a domain, two questions each")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.work:
        code, said = work(*given.work)
        print(said)
        return code
    lines, failed = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, whole = corpus_of(folder / "corpus", given.images), folder / "whole"
        code, said, calls = in_a_process(corpus, whole, None, 0)
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {said}")
        expected = hashes(whole)
        draws = random.Random(given.seed)
        # Spread over the whole run, one at random in each part of it.
        parts = [range(calls * one // given.times, calls * (one + 1) // given.times) for one in range(given.times)]
        for number, part in enumerate(parts):
            first, error = draws.choice(part) + 1, ERRORS[number % len(ERRORS)] if number % 2 else errno.ENOSPC
            out = folder / f"run-{number}"
            code, said, _ = in_a_process(corpus, out, first, error)
            came = judged(code, said, corpus, out, expected)
            failed += not came.startswith("every file equal")
            lines.append(f"{errno.errorcode[error]:7} from call {first:4} of {calls}  {came}")
            print(lines[-1], flush=True)
            shutil.rmtree(out)
        sizes = SIZES if may_mount(folder) else ()
        for size in sizes:
            out = folder / f"disk-{size}"
            came = judged(*mounted(corpus, size, out), corpus, out, expected)
            failed += not came.startswith("every file equal")
            lines.append(f"a disk of {size:5}                {came}")
            print(lines[-1], flush=True)
            shutil.rmtree(out)
        kinds = "mounted" if sizes else "none mounted: not allowed here"
    title = (
        f"{given.times} full disks and {len(sizes)} small ones ({kinds}), seed {given.seed}, an undisturbed run makes "
        f"{calls} calls and {len(expected)} files, {failed} runs that differ or fail"
    )
    log = ROOT / "benchmarks" / f"full-disk-{datetime.date.today().isoformat()}.log"
    log.write_text("\n".join([title, *lines]) + "\n", encoding="utf-8")
    print(title, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
