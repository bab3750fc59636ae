"""Many graphs in one batch, side by side with one run a graph and with plain hooks, in one process and in turns.

    python benchmarks/many_graphs.py [--models embedded,real-parts,300m] [--dtype float32] [--rounds 3] [--threads 2]
        [--layers 0] [--positions 20] [--conditions 12] [--tokens 16] [--out FILE]

Two parts: a patching heat map (every layer, or the first so many, x some positions, the logits of the last token), and
a generation under a number of ablation conditions. Times are medians over rounds, ratios medians of ratios within a
round. It asserts nothing; what differs from separate runs is shown beside.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import models
import torch
from jaxtyping import Float
from torch import Tensor

from interventions import Graph, module, patch_activations, per_layer, reads, sweep, zero_neurons
from mmneuron_lens import Lens


@reads("llm.norm", over="list", head=module("llm.unembed"))
def last_logits(hidden: Float[Tensor, "row 1 hidden"], head: Callable[[Tensor], Tensor]) -> Float[Tensor, "row words"]:
    return head(hidden[:, -1])


def first(held: Any) -> Any:
    """The hidden states of what a decoder layer returns."""
    return held[0] if isinstance(held, tuple) else held


class HeatMap:
    """Layers, the first so many or all, and some positions of a corrupted prompt patched from a clean one."""

    def __init__(self, lens: Lens, name: str, layers: int, positions: int) -> None:
        self.lens = lens
        clean, corrupted = models.pictures(name, 2)
        question = models.asked(0, 1)
        self.clean, self.corrupted = lens.encode([clean], question), lens.encode([corrupted], question)
        self.paths = [path for _, path in lens.architecture.place("llm.residual").paths()]
        self.paths = self.paths[: layers or None]
        self.places = range(self.clean.prompt_length - positions, self.clean.prompt_length)
        self.heat = sweep(patch_activations, layers=range(len(self.paths)), positions=self.places)
        self.heat |= last_logits.at(positions=-1)

    def together(self) -> Tensor:
        return self.heat.grid(self.lens.run(self.heat, self.corrupted, sources=self.clean), "last_logits")

    def apart(self) -> Tensor:
        found = [self.lens.run(graph, self.corrupted, sources=self.clean) for graph in self.heat]
        return self.heat.grid(found, "last_logits")

    def hooks(self) -> Tensor:
        held: dict[str, Any] = {}
        handles = [
            self.lens.module.get_submodule(path).register_forward_hook(
                lambda _module, _inputs, out, path=path: held.__setitem__(path, first(out))
            )
            for path in self.paths
        ]
        inputs = {name: value.to(self.lens.device) for name, value in self.corrupted.inputs.items()}
        clean = {name: value.to(self.lens.device) for name, value in self.clean.inputs.items()}
        with torch.no_grad():
            self.lens.module(**clean, use_cache=False, logits_to_keep=1)
            for handle in handles:
                handle.remove()
            cells = [self._cell(inputs, path, held[path], place) for path in self.paths for place in self.places]
        return torch.stack(cells).unflatten(0, (len(self.paths), len(self.places)))

    def _cell(self, inputs: dict[str, Tensor], path: str, source: Tensor, place: int) -> Tensor:
        def patch(_module: Any, _inputs: Any, out: Any) -> Any:
            hidden = first(out).clone()
            hidden[:, place] = source[:, place]
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handle = self.lens.module.get_submodule(path).register_forward_hook(patch)
        try:
            return self.lens.module(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        finally:
            handle.remove()


class Conditions:
    """A generation with some neurons of the language model off, another tenth of them in each condition."""

    def __init__(self, lens: Lens, name: str, conditions: int, tokens: int) -> None:
        self.lens, self.settings = lens, {"max_new_tokens": tokens, "do_sample": False}
        rows = models.ROWS[name]
        self.batch = lens.encode(models.pictures(name, rows), models.asked(0, rows))
        place = lens.architecture.place("llm.mlp.act")
        shape = (place.layers or 1, place.sizes["neuron"])
        masks = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.1 for seed in range(conditions)]
        self.graphs = [Graph(), *(Graph((zero_neurons.bind(neurons=per_layer(mask)),)) for mask in masks[1:])]

    def together(self) -> list[list[int]]:
        found = self.lens.generate(self.graphs, self.batch, **self.settings)
        return [tokens.tolist() for out in found for tokens in out.tokens]

    def apart(self) -> list[list[int]]:
        found = [self.lens.generate(graph, self.batch, **self.settings) for graph in self.graphs]
        return [tokens.tolist() for out in found for tokens in out.tokens]


def timed(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each way by round, after a round that warms, and what each came to."""
    results = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def line(title: str, seconds: dict[str, list[float]], difference: str) -> str:
    """A row of the table: times, how many times faster one forward is, and what differs."""
    together = seconds["together"]
    shown = [f"{median(some):.2f} s" for some in seconds.values()]
    faster = [
        f"{median(other / one for one, other in zip(together, some, strict=True)):.1f}x"
        for name, some in seconds.items()
        if name != "together"
    ]
    shown += ["-"] * (3 - len(shown))
    faster += ["-"] * (2 - len(faster))
    return f"| {title} | {' | '.join([*shown, *faster, difference])} |"


def heat_map(lens: Lens, name: str, layers: int, positions: int, rounds: int) -> str:
    made = HeatMap(lens, name, layers, positions)
    seconds, found = timed({"together": made.together, "apart": made.apart, "hooks": made.hooks}, rounds)
    apart = max(float((found["together"].cpu() - found[other].cpu()).abs().max()) for other in ("apart", "hooks"))
    title = f"{name}: heat map {len(made.paths)} x {positions}, {made.clean.prompt_length} columns"
    return line(title, seconds, f"logits by {apart:.1e}")


def conditions(lens: Lens, name: str, count: int, tokens: int, rounds: int) -> str:
    made = Conditions(lens, name, count, tokens)
    seconds, found = timed({"together": made.together, "apart": made.apart}, rounds)
    other = sum(one != two for one, two in zip(found["together"], found["apart"], strict=True))
    title = f"{name}: {count} conditions, {made.batch.rows} rows of {made.batch.prompt_length} columns, {tokens} tokens"
    return line(title, seconds, f"{other} of {len(found['apart'])} answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--positions", type=int, default=20)
    parser.add_argument("--conditions", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = [
        f"{given.dtype}, {given.threads} threads, {given.rounds} rounds, torch {torch.__version__}",
        "",
        "| what | one forward | a run each | hooks each | faster than runs | than hooks | differs |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name in given.models.split(","):
        lens = models.load(name, given.dtype)
        for part in (
            lambda lens=lens, name=name: heat_map(lens, name, given.layers, given.positions, given.rounds),
            lambda lens=lens, name=name: conditions(lens, name, given.conditions, given.tokens, given.rounds),
        ):
            lines.append(part())
            print(lines[-1], flush=True)
            if given.out:
                given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
