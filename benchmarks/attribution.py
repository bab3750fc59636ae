"""Attribution and the largest activations, side by side with what they stand beside: ratios of one run.

    python benchmarks/attribution.py [--models embedded real-parts 300m] [--rounds 5] [--threads 1] [--batches 2]

- attribution: gradient times value of every decoder neuron in one graph, over the same by torch hooks and `backward`,
  and the most memory that each takes
- top 20: the 20 largest activations of every neuron with their samples, over counting alone; and how much memory more
  samples take

Each method takes its turn in every round; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable

import models
import torch
import turns

from interventions import answer_log_probability, count_checked, gradient, summed_attribution, top_activations
from mmneuron_lens import Lens
from mmneuron_lens.runtime.batch import Batch

ATTRIBUTION = summed_attribution.bind(gradient=gradient(answer_log_probability))


def by_hooks(lens: Lens, batch: Batch) -> torch.Tensor:
    """The same sums, written with torch alone."""
    held: list[torch.Tensor] = []

    def keep(_module, arguments):
        arguments[0].retain_grad()
        held.append(arguments[0])

    paths = [path for _, path in lens.architecture.place("llm.mlp.post").paths()]
    handles = [lens.module.get_submodule(path).register_forward_pre_hook(keep) for path in paths]
    answer, weight = batch.fields["llm"]["answer"], batch.fields["llm"]["weight"]
    rows, places = (answer >= 0).nonzero(as_tuple=True)
    logits = lens.module(**batch.inputs).logits[rows, places].float()
    target = logits.log_softmax(-1).gather(-1, answer[rows, places, None]).sum()
    for value, slope in zip(held, torch.autograd.grad(target, held), strict=True):
        value.grad = slope
    for handle in handles:
        handle.remove()
    return torch.stack([((one * one.grad).double() * weight[..., None]).sum((0, 1)).detach() for one in held])


def alternately(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each method; they take turns, and the first round is not counted."""
    seen: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            method()
            if number:
                seen[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seen.items()}


def peak(method: Callable[[], object]) -> float:
    """MiB that a method takes above what is held when it begins."""
    # What was freed goes back first; otherwise it would be taken again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    turns.forget_peak()
    before = turns.resident("VmRSS")
    method()
    return (turns.resident("VmHWM") - before) / turns.MIB


def measure(name: str, rounds: int, count_of_batches: int) -> list[str]:
    """The lines of one model."""
    lens = models.load(name, "float32")
    rows = models.ROWS[name] if name != "embedded" else 4
    # No picture twice: equal activations would be ties, which take longer to put in order.
    images = models.pictures(name, rows * count_of_batches)
    asked = [models.asked(number, 1)[0] for number in range(rows * count_of_batches)]
    batch = lens.encode(images[:rows], asked[:rows], ["a red car"] * rows)
    found, expected = lens.run(ATTRIBUTION, batch)["summed_attribution"], by_hooks(lens, batch)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    methods = {"graph": lambda: lens.run(ATTRIBUTION, batch), "hooks": lambda: by_hooks(lens, batch)}
    times = alternately(methods, rounds)
    lines = [
        f"{name:10} attribution {times['graph'] / times['hooks']:.3f} x of plain autograd ({times['hooks']:.3f} s); "
        f"peaks {peak(methods['graph']):.0f} and {peak(methods['hooks']):.0f} MiB"
    ]
    count, top = count_checked.at("*.act"), top_activations.at("*.act")
    starts = range(0, len(images), rows)
    batches = [lens.encode(images[at : at + rows], asked[at : at + rows]) for at in starts]
    times = alternately(
        {"count": lambda: lens.run(count, batches), "top": lambda: lens.run(count | top, batches)}, rounds
    )
    what = f"({times['count']:.3f} s, {count_of_batches} batches)"
    lines.append(f"{name:10} top 20 {times['top'] / times['count']:.3f} x of counting alone {what}")
    peaks = []
    for times_over in (4, 16):
        peaks.append(peak(lambda times_over=times_over: lens.run(top, (batches[0] for _ in range(times_over)))))
    lines.append(f"{name:10} top 20: {peaks[0]:.0f} MiB above the model with 4 batches, {peaks[1]:.0f} with 16")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["embedded"], choices=models.MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.models:
        models.prepare(name)
        print("\n".join(measure(name, given.rounds, given.batches)), flush=True)


if __name__ == "__main__":
    main()
