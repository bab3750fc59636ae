"""What `mmneuron count --moments` costs beside `mmneuron count`: ratios of one run.

    python benchmarks/moments.py [--models embedded real-parts smol] [--rounds 7] [--parts whole read] [--images 24]

Each round counts one domain into a fresh folder, as the command does but for loading the model: without moments, with
those of activations alone, and with those of what the down projection is given too. They take turns; the ratio is the
median of the ratios within a round. Beside it, the same of the reads alone, on one batch. Times are a processor's, of
one thread, which other programs on the machine disturb less than they do the clock on the wall.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import models
import torch

import mmneuron_lens as mm
from interventions import Graph, moments
from mmneuron_lens.experiments import moments as experiment
from mmneuron_lens.experiments.count import counting_graph
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.moments import moments_stage
from mmneuron_lens.runs.store import Store


def in_turns(methods: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each method, round by round; the first round is not counted."""
    seen: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            started = time.process_time()
            method()
            if number:
                seen[name].append(time.process_time() - started)
    return seen


def shown(seen: dict[str, list[float]]) -> str:
    first = next(iter(seen))
    cells = [f"{first} {1e3 * statistics.median(seen[first]):,.1f} ms"]
    for name, spent in seen.items():
        ratios = [own / base for own, base in zip(spent, seen[first], strict=True)]
        if name != first:
            cells.append(f"{name} {statistics.median(ratios):.3f} x ({min(ratios):.3f} to {max(ratios):.3f})")
    return "; ".join(cells)


def measure(name: str, given: argparse.Namespace) -> list[str]:
    lens = mm.Lens("embedded/smol") if name == "smol" else models.load(name, "float32")
    corpus = mm.load_corpus("drawn", images=given.images, questions_per_image=given.questions)
    domain, samples = next(iter(corpus.by_domain().items()))

    def kept(stage: Callable[..., Any]) -> Callable[[], Any]:
        def method() -> None:
            with tempfile.TemporaryDirectory() as folder:
                stage(lens, {domain: samples}, Store(folder))

        return method

    def act_alone(*settings: Any) -> None:
        with patch.object(experiment, "moment_sites", lambda lens: [s for s in lens.sites if s.endswith(".act")]):
            moments_stage(*settings)

    lines: list[str] = []
    if "whole" in given.parts:
        stages = {"count": count_stage, "act": act_alone, "act and post": moments_stage}
        seen = in_turns({name: kept(stage) for name, stage in stages.items()}, given.rounds)
        lines.append(f"{name:10} {len(samples)} questions, whole: {shown(seen)}")
    if "read" in given.parts:
        batch = lens.pack([(samples[0].images, [one.question for one in samples if one.images == samples[0].images])])
        acts = moments.at([site for site in lens.sites if site.endswith(".act")])
        graphs = {"count": counting_graph(lens), "act": Graph((acts,)), "act and post": experiment.moments_graph(lens)}
        seen = in_turns(
            {name: lambda graph=graph: lens.run(graph, batch) for name, graph in graphs.items()}, given.rounds
        )
        lines.append(f"{name:10} {batch!r}, read: {shown(seen)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["embedded"], choices=(*models.MODELS, "smol"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", default=["whole", "read"], choices=("whole", "read"))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--questions", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.models:
        models.prepare(name)
        print("\n".join(measure(name, given)), flush=True)
    print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
