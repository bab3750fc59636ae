"""Counting side by side: the published loop, plain hooks, a bare lean forward, and ours; then the other bounds.

    python benchmarks/run.py [--parts tables generation lens imports growth] [--models embedded,real-parts,300m]
        [--dtype float32,bfloat16] [--questions 1 8 90] [--rounds 5] [--threads 2] [--out benchmarks/results-DATE.md]

Every method lives in a process of its own, and all take turns within a round, so that another program on the machine
slows all of them; cells are medians over rounds, ratios medians of ratios within a round. The processor is included.
Methods that ask one question a row are timed on few questions: what a question costs them does not depend on how many
follow. Results are written as they come, so a run that is stopped leaves those it has.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import traceback
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

import arithmetic
import methods
import models
import single
import torch
import transformers
from turns import Worker

PARTS = ("tables", "generation", "lens", "imports", "growth")
BRIDGE_PYTHON = Path(__file__).parent.parent / ".venv-bridge" / "bin" / "python"
"""Of the environment that `make bench` prepares for TransformerLens."""


def table(name: str, dtype: str, questions: list[int], rounds: int, threads: int) -> list[str]:
    """A row per method: milliseconds a question, times faster than the published loop, share of the bound."""
    rows = models.ROWS[name]
    images = 4 if rows > 1 else 1
    lens = models.load(name, dtype)
    picture = models.pictures(name, 1)[0]
    wants = {count: arithmetic.needed(lens, picture, models.asked(0, count)) for count in questions}
    single_need = arithmetic.needed(lens, picture, models.asked(0, 1))[0]
    weights = sum(parameter.numel() for parameter in lens.module.parameters()) / 1e6
    shown = repr(lens.encode([picture], models.asked(0, 1)))
    del lens
    workers: dict[str, Worker] = {}
    seconds: dict[tuple[str, int], list[float]] = {}
    peaks: dict[tuple[str, int], float] = {}
    timed = 0
    left_out = ""
    try:
        for method in methods.METHODS:
            try:
                python = BRIDGE_PYTHON if method == methods.BRIDGE else None
                worker = Worker(method, name, dtype, threads, python)
                # Warm: what a first run compiles and checks is not counting. Large models make it invisible.
                for count in questions if rows > 1 else [1]:
                    worker.time(images, count, None if method in methods.SHARING else rows)
            except (RuntimeError, FileNotFoundError) as error:
                if method != methods.BRIDGE:
                    raise
                # A path of one machine says nothing in dated results.
                missing = "no .venv-bridge, which `make bench` prepares"
                reason = missing if isinstance(error, FileNotFoundError) else str(error)[:120]
                left_out = f"{method} was not measured: {reason}"
                continue
            workers[method] = worker
        for turn in range(rounds):
            for method, worker in workers.items():
                for count in questions if method in methods.SHARING else [max(questions[0], rows)]:
                    sharing = method in methods.SHARING
                    spent, peak, done = worker.time(images, count, None if sharing else rows)
                    timed = timed if sharing else done
                    for key in [count] if sharing else questions:
                        seconds.setdefault((method, key), []).append(spent)
                        peaks[method, key] = max(peak, peaks.get((method, key), 0))
            print(f"  {name} {dtype}: round {turn + 1} of {rounds}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    lines = [
        f"### {name}, {dtype}",
        "",
        f"{weights:,.0f} M weights; {shown} for one question; {images} images, {rounds} rounds, {threads} threads. "
        f"Methods of one question a row: batches of {rows}, timed on {timed} questions, the same for every column.",
        "",
        "| method | " + " | ".join(f"{count} questions an image" for count in questions) + " | peak beyond the model |",
        "|---" * (len(questions) + 2) + "|",
    ]
    base = {count: seconds["published loop", count] for count in questions}
    # The fastest forward seen of one question: a slow moment of the machine must not lower the bound.
    rate = single_need / min(
        [*seconds["bare lean forward", questions[0]], *seconds.get(("bare lean forward, packed", 1), [])]
    )
    bounds = {count: wants[count][0] / count / rate for count in questions}
    for method in workers:
        cells = []
        for count in questions:
            own = seconds[method, count]
            ratio = median(first / each for first, each in zip(base[count], own, strict=True))
            cells.append(f"{1e3 * median(own):,.1f} ms, {ratio:.2f}x, {bounds[count] / median(own):.0%}")
        memory = " / ".join(f"{peaks[method, count]:,.0f}" for count in questions)
        lines.append(f"| {method} | {' | '.join(cells)} | {memory} MiB |")
    cells = [
        f"{1e3 * bounds[count]:,.1f} ms, {median(base[count]) / bounds[count]:.2f}x: {wants[count][1]:,} positions, "
        f"{wants[count][0] / 1e9:,.1f} GFLOP"
        for count in questions
    ]
    lines.append(f"| arithmetic bound | {' | '.join(cells)} | |")
    for first, second in (("bare lean forward", "ours, exact"), ("bare lean forward, packed", "ours, packed")):
        over = [
            median(own / bare for bare, own in zip(seconds[first, count], seconds[second, count], strict=True)) - 1
            for count in questions
        ]
        shares = ", ".join(f"{share:+.1%} ({count})" for share, count in zip(over, questions, strict=True))
        lines += ["", f"Counting over the {first} ({second}): {shares}; target 2 % at most."]
    bare = 1e3 * median(seconds["bare lean forward", questions[0]])
    lines += ["", f"{single.compare_and_reduce(name, dtype)} of the bare lean forward's {bare:,.1f} ms a question."]
    lines += ["", left_out] if left_out else []
    lines += ["", f"Per cents are of the arithmetic bound at the fastest bare forward's {rate / 1e9:,.1f} GFLOP/s.", ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--models", default=",".join(models.MODELS))
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 8, 90])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--growth", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    day = datetime.date.today()
    out = options.out or Path(__file__).parent / f"results-{day}.md"

    def write(lines: list[str]) -> None:
        print("\n".join(lines), flush=True)
        with out.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def part(title: str, make) -> None:
        """One part; what goes wrong in it is written down, and the others still run."""
        try:
            write(make())
        except Exception as error:
            traceback.print_exc()
            write([f"{title} was not measured: {type(error).__name__}: {error}", ""])

    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    if set(options.parts) == set(PARTS):
        # Parts run alone are added to what is there.
        out.unlink(missing_ok=True)
    write(
        [
            f"# Counting, {day}",
            "",
            f"{os.cpu_count()} cores ({platform.machine()}), {options.threads} threads, load average {load} at the "
            f"start, torch {torch.__version__}. Cells: time a question, times faster than the published loop, share of "
            "the arithmetic bound.",
            "",
        ]
    )
    if "tables" in options.parts:
        for name in options.models.split(","):
            part(f"Loading {name}", lambda name=name: models.prepare(name) or [])
            for dtype in options.dtype.split(","):
                part(
                    f"The table of {name} in {dtype}",
                    lambda name=name, dtype=dtype: table(
                        name, dtype, options.questions, options.rounds, options.threads
                    ),
                )
    rounds = options.rounds
    if "generation" in options.parts:
        part("Ablated generation", lambda: [*single.generation(rounds), ""])
    if "lens" in options.parts:
        part("The lens", lambda: [*single.lens_bound(rounds), ""])
    if "imports" in options.parts:
        part("Imports", lambda: [*single.imports(rounds), ""])
    if "growth" in options.parts:
        part("Growth", lambda: ["### Growth, ours packed, 8 questions an image", "", *single.growth(options.growth)])
    print(f"Written to {out}")


if __name__ == "__main__":
    main()
