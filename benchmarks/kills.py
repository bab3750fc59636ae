"""Kills: a run killed at random moments and started again, until it is done; every file must come out equal.

    python benchmarks/kills.py --kills 200

The work is `mmneuron count` on an embedded model, then the selection and its controls, then answers with neurons off.
Both models in turn, over a corpus of two domains with one image that cannot be decoded; every second pair of runs
decodes its images ahead in two worker processes. A run is the same work again and again, each time killed with SIGKILL
after a seeded random part of the time that an undisturbed one takes, until one is fast enough to finish. Then the
sha256 of every file of the run's folder is compared with those of the undisturbed one. Processes are forked from one
that has imported everything and computed nothing, so that kills fall into the work and not into the start of Python,
and no thread of a library is lost; what is done is kept every `--seconds` instead of every minute. Writes
benchmarks/kills-DATE.log; exit code 1 if any run differs or fails.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import mmneuron_lens  # noqa: E402, F401, I001  (first: it imports beartype before nnsight)
import torch  # noqa: E402
from drawn_corpus import write_corpus  # noqa: E402

from mmneuron_lens import Lens, ablate, identify, load_corpus  # noqa: E402
from mmneuron_lens.artifacts.format import content_hash  # noqa: E402
from mmneuron_lens.batching import gather  # noqa: E402
from mmneuron_lens.cli import app  # noqa: E402

MODELS = ("llava-next", "instructblip")
SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """What came of one run: how often it was killed, how often of these with a domain half counted and with the answers
    half given, and how it ended.
    """

    kills: int
    counting: int
    answering: int
    said: str

    @property
    def good(self) -> bool:
        return self.said == "every file equal"


def corpus_of(folder: Path, images: int) -> Path:
    """Two domains of noise images; one image of the first has a good header and ends too early."""
    write_corpus(folder, images=images)
    image = folder / "images" / "common2.png"
    image.write_bytes(image.read_bytes()[:-2000])
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file under a folder, hidden ones too, by relative path."""
    return {str(path.relative_to(folder)): content_hash(path) for path in folder.rglob("*") if path.is_file()}


def start(
    model: str, corpus: Path, out: Path, seconds: float = SECONDS, workers: int = 0
) -> multiprocessing.process.BaseProcess:
    """The work in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills"])
    process = context.Process(target=_work, args=(model, corpus, out, seconds, workers))
    process.start()
    return process


def undisturbed(model: str, corpus: Path, out: Path, seconds: float = SECONDS) -> float:
    """Does the work once and returns how many seconds it took. Raises `RuntimeError` when it fails."""
    began = time.monotonic()
    process = start(model, corpus, out, seconds, 0)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the undisturbed run of {model} ended with {process.exitcode}.")
    return time.monotonic() - began


def killed_until_done(
    model: str, corpus: Path, out: Path, expected: dict[str, str], draws: random.Random, longest: float,
    at_most: int, seconds: float = SECONDS, workers: int = 0,
) -> Run:  # fmt: skip
    """One run: killed after up to `longest` seconds again and again, `at_most` times, then left alone."""
    kills, counting, answering = 0, 0, 0
    while True:
        process = start(model, corpus, out, seconds, workers)
        process.join(draws.uniform(0, longest) if kills < at_most else None)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        if process.exitcode != -9:
            return Run(kills, counting, answering, f"FAILED with exit code {process.exitcode}")
        kills += 1
        counting += any(out.rglob("*.pieces/*.safetensors"))
        answering += any(out.rglob("*.pieces/*.jsonl"))
    found = hashes(out)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    said = f"DIFFERENT: {', '.join(different)}" if different else "every file equal"
    return Run(kills, counting, answering, said)


def _work(model: str, corpus: Path, out: Path, seconds: float, workers: int) -> None:
    """Counts, selects and answers in this process, saying nothing, and keeps what is done every so many seconds."""
    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    gather.SECONDS = seconds
    words = ["count", "--model", f"embedded/{model}", "--corpus", str(corpus), "--out", str(out), "--batch-size", "4"]
    app([*words, "--workers", str(workers)], standalone_mode=False)
    lens, asked = Lens(f"embedded/{model}"), load_corpus(corpus)
    found = identify(lens, asked, batch_size=4, permutations=2, out=out)
    ablate(lens, found.selection, asked, batch_size=2, random_draws=1, max_new_tokens=3, out=out)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--kills", type=int, default=200)
    words.add_argument("--images", type=int, default=24, help="images a domain, two questions each")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--seconds", type=float, default=SECONDS, help="after which what is done is kept")
    given = words.parse_args()
    draws = random.Random(given.seed)
    kills, runs, failed, counting, answering, lines = 0, 0, 0, 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(Path(folder) / "corpus", given.images)
        whole = {model: Path(folder) / f"whole-{model}" for model in MODELS}
        longest = {model: undisturbed(model, corpus, out, given.seconds) for model, out in whole.items()}
        expected = {model: hashes(out) for model, out in whole.items()}
        for model in MODELS:
            lines.append(f"{model}: an undisturbed run takes {longest[model]:.1f} s and writes")
            lines += [f"  {digest}  {name}" for name, digest in sorted(expected[model].items())]
        print("\n".join(lines), flush=True)
        while kills < given.kills:
            model, out = MODELS[runs % len(MODELS)], Path(folder) / f"run-{runs}"
            workers = 2 * (runs // 2 % 2)
            run = killed_until_done(
                model, corpus, out, expected[model], draws, longest[model], given.kills - kills, given.seconds, workers
            )
            runs, kills, failed = runs + 1, kills + run.kills, failed + (not run.good)
            counting, answering = counting + run.counting, answering + run.answering
            lines.append(
                f"run {runs:3}  {model:13}  {workers} workers  {run.kills:3} kills, {run.counting:3} with a domain "
                f"half counted, {run.answering:3} with answers half given  {kills:4} in all  {run.said}"
            )
            print(lines[-1], flush=True)
    title = (
        f"{kills} kills in {runs} runs, {counting} of them with a domain half counted and {answering} with answers "
        f"half given, seed {given.seed}, {failed} runs that differ or fail"
    )
    log = ROOT / "benchmarks" / f"kills-{datetime.date.today().isoformat()}.log"
    log.write_text("\n".join([title, *lines]) + "\n", encoding="utf-8")
    print(title, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
