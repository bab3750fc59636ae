"""Real size once: a LLaVA-NeXT of the published 7B configuration, random weights, bfloat16, on a CPU.

    python benchmarks/real_size.py [--layers 32] [--threads 2] [--out benchmarks/real-size-DATE.md]

Counts one full image (about 2,900 positions) with 8 questions in each of two domains, is ended with SIGKILL while it
counts the second, does the same command again, which goes on where it was, selects, and runs one forward with the
selected neurons off. Prints each step's time and the most memory a process held. The 14 GB of weights are filled in
place.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import models
import torch
from turns import MIB, resident

from interventions import Graph, keep, per_layer, zero_neurons
from mmneuron_lens import Lens
from mmneuron_lens.batching import gather
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.identify import select_stage
from mmneuron_lens.runs.store import Store

DOMAINS = ("common", "document")
QUESTIONS = 8


def seven_billion(layers: int, vision_layers: int) -> Lens:
    """The published configuration of llava-v1.6-vicuna-7b (CLIP-L/336, hidden state -2), or one of fewer layers."""
    text = {"hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    return models.random_llava_next(
        {**text, "num_hidden_layers": layers},
        {**vision, "num_hidden_layers": vision_layers},
        torch.bfloat16,
        vision_feature_layer=-2,
        name="random-7b",
    )


def samples(folder: Path) -> dict[str, list[Sample]]:
    """One full image and 8 questions per domain."""
    made = {}
    for number, (domain, picture) in enumerate(zip(DOMAINS, models.pictures("300m", 2), strict=True)):
        path = folder / f"{domain}.png"
        if not path.is_file():
            picture.save(path)
        asked = models.asked(number, QUESTIONS)
        made[domain] = [Sample(f"{domain}-{place}", domain, (path,), text, ("",)) for place, text in enumerate(asked)]
    return made


def count(folder: Path, layers: int, vision_layers: int, threads: int, last: bool) -> None:
    """The process that is killed, and the one that goes on. last: select and switch off when counted."""
    torch.set_num_threads(threads)
    said = _Clock()
    gather.SECONDS = 0.0
    lens, store = seven_billion(layers, vision_layers), Store(folder)
    weights = sum(parameter.numel() for parameter in lens.module.parameters()) / 1e9
    said(f"built, {weights:.2f} billion weights")
    asked = samples(folder)
    for domain, some in asked.items():
        print(f"counting {domain}", flush=True)
        count_stage(lens, {domain: some}, store)
        said(f"counted {domain}")
    if last:
        (found,) = select_stage(folder, store, permutations=1)
        selected = {site: int(mask.sum()) for site, mask in _masks(found.selection).items()}
        said(f"selected {selected}")
        graph = Graph()
        for site, mask in _masks(found.selection).items():
            place = lens.architecture.place(site)
            off = mask if place.layers is not None else mask[0]
            graph = graph | zero_neurons.bind(neurons=per_layer({site: off})).at(site).named(f"zero {site}")
        batch = lens.encode(models.pictures("300m", 1), models.asked(0, 1))
        out = lens.run(graph | keep.at("llm.mlp.act", layers=[0], positions=[-1]), batch)
        held = out["keep", "llm.mlp.act"][0].flatten()
        assert not held[_masks(found.selection)["llm.mlp.act"][0]].any(), "a selected neuron is not silent"
        said("one forward with the selected neurons off")
    print(f"peak memory {resident('VmHWM') / MIB / 1024:.2f} GiB", flush=True)


def _masks(selection: Any) -> dict[str, torch.Tensor]:
    """Bool `[layer, neuron]` by site: selected in any domain."""
    return {site: mask.any(-1) for site, mask in selection.masks.items()}


class _Clock:
    """Says what was done and how long it took since the last time."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()

    def __call__(self, what: str) -> None:
        now = time.perf_counter()
        print(f"{what}: {now - self.begun:.1f} s", flush=True)
        self.begun = now


def run(options: argparse.Namespace, folder: Path, kill: bool) -> list[str]:
    """The counting process's lines; with `kill` it is killed five seconds after it begins the second domain."""
    command = [sys.executable, __file__, "--child", str(folder), "--layers", str(options.layers)]
    command += ["--vision-layers", str(options.vision_layers), "--threads", str(options.threads)]
    command += [] if kill else ["--last"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines, killed = [], False
    assert child.stdout is not None
    for line in child.stdout:
        print(f"  {line}", end="", flush=True)
        lines.append(line.strip())
        if kill and line.strip() == f"counting {DOMAINS[1]}":
            time.sleep(options.after)
            child.send_signal(signal.SIGKILL)
            killed = True
    code = child.wait()
    if code not in ((-signal.SIGKILL,) if killed else (0,)):
        raise SystemExit(f"the counting process ended with {code} (-9: killed for memory?)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vision-layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--after", type=float, default=5.0, help="seconds into the second domain until the kill")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--last", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        count(options.child, options.layers, options.vision_layers, options.threads, options.last)
        return
    day = datetime.date.today()
    out = options.out or Path(__file__).parent / f"real-size-{day}.md"
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        before = run(options, Path(name), kill=True)
        after = run(options, Path(name), kill=False)
        spent = time.perf_counter() - begun
    resumed = next(line for line in after if line.startswith(f"counted {DOMAINS[0]}"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = "\n".join(
        [
            f"## {day}: {options.layers} layers, CLIP of {options.vision_layers}, bfloat16, {options.threads} threads",
            "",
            f"Load average {load} at the end; {spent:,.0f} s in all. A full image with {QUESTIONS} questions a domain.",
            "",
            "First process, ended with SIGKILL while it counted the second domain:",
            *[f"- {line}" for line in before if not line.startswith("counting")],
            "",
            f"The same command again (the first domain was not counted again: {resumed}):",
            *[f"- {line}" for line in after if not line.startswith("counting")],
            "",
        ]
    )
    with out.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
