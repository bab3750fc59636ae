"""Counting side by side: the published loop, plain hooks, a bare lean forward, and ours. Prints one table of Markdown.

    python benchmarks/run.py [--images 4] [--rounds 5] [--out benchmarks/results-YYYY-MM-DD.md]

Every method gets the same images and questions and includes the processor. Methods take turns within a round, and the
table holds medians over rounds, so that another program on the machine slows all of them. At 90 questions an image the
methods that forward one question a row are timed on the first 8 of each image and multiplied, as the table says.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from interventions import count_active_by_kind, count_positions
from mmneuron_lens import Lens
from mmneuron_lens.experiments.identify import PACKED
from mmneuron_lens.packing import packed

ROWS = 8
TIMED = 8
"""Questions of an image on which the slow methods are timed, at most."""

QUESTIONS = ("What is shown here?", "Is there anything red in the picture?", "How many objects are there?")


def asked(image: int, count: int) -> list[str]:
    """So many different questions of one image."""
    return [f"{QUESTIONS[(image + number) % 3]} {number}" for number in range(count)]


def neuron_modules(lens: Lens) -> list[torch.nn.Module]:
    paths = [path for site in lens.sites if site.endswith(".act") for _, path in lens.anatomy.place(site).paths()]
    return [lens.module.get_submodule(path) for path in paths]


def published(lens: Lens, work: list[tuple[Image.Image, str]]) -> None:
    """The shape of the published loop: forwards patched, one sample at a time, all logits kept, int64 sums."""
    modules = neuron_modules(lens)
    counts: dict[int, torch.Tensor] = {}

    def patch(number: int, module: torch.nn.Module) -> None:
        before = module.forward

        def forward(value: torch.Tensor) -> torch.Tensor:
            out = before(value)
            counts[number] = counts.get(number, 0) + (out > 0).flatten(0, -2).sum(0)
            return out

        module.forward = forward

    for number, module in enumerate(modules):
        patch(number, module)
    try:
        with torch.no_grad():
            for image, question in work:
                batch = lens.encode([image], [question])
                lens.module(**batch.inputs)
    finally:
        for module in modules:
            del module.forward


def hooks(lens: Lens, work: list[tuple[Image.Image, str]]) -> None:
    """Plain forward hooks on padded batches, padding masked out where the language model has it."""
    counts: dict[int, torch.Tensor] = {}
    real = torch.ones(())

    def hook(number: int) -> Callable[..., None]:
        def count(_module: torch.nn.Module, _inputs: object, out: torch.Tensor) -> None:
            active = out > 0
            if active.shape[:2] == real.shape:
                active = active & real[..., None]
            counts[number] = counts.get(number, 0) + active.flatten(0, -2).sum(0)

        return count

    handles = [module.register_forward_hook(hook(number)) for number, module in enumerate(neuron_modules(lens))]
    try:
        with torch.inference_mode():
            for batch in _padded(lens, work):
                real = batch.inputs["attention_mask"].bool()
                lens.module(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()


def bare(lens: Lens, work: list[tuple[Image.Image, str]]) -> None:
    """Counts nothing: no cache, one position unembedded, inference mode. What counting is measured against."""
    with torch.inference_mode():
        for batch in _padded(lens, work):
            lens.module(**batch.inputs, use_cache=False, logits_to_keep=1)


def bare_packed(lens: Lens, work: list[tuple[Image.Image, str]]) -> None:
    """The same, packed as ours."""
    with torch.inference_mode():
        for batch in _packs(lens, work):
            lens.module(**batch.inputs, use_cache=False, logits_to_keep=1)


GRAPH = count_active_by_kind.at("*.act") | count_positions.at("*.act")


def ours_exact(lens: Lens, work: list[tuple[Image.Image, str]]) -> None:
    lens.run(GRAPH, _padded(lens, work))


def ours_packed(lens: Lens, work: list[tuple[Image.Image, str]]) -> None:
    lens.run(GRAPH, _packs(lens, work))


METHODS = {
    "published loop": (published, False),
    "plain hooks, batches": (hooks, False),
    "bare lean forward, batches": (bare, False),
    "ours, exact": (ours_exact, False),
    "bare lean forward, packed": (bare_packed, True),
    "ours, packed": (ours_packed, True),
}


def _padded(lens: Lens, work: list[tuple[Image.Image, str]]):
    for start in range(0, len(work), ROWS):
        some = work[start : start + ROWS]
        yield lens.encode([image for image, _ in some], [question for _, question in some])


def _packs(lens: Lens, work: list[tuple[Image.Image, str]]):
    rows: list[tuple[list[Image.Image], list[str]]] = []
    for image, question in work:
        if not rows or rows[-1][0][0] is not image or len(rows[-1][1]) == PACKED:
            rows.append(([image], []))
        rows[-1][1].append(question)
    # About as many questions in a forward as the unpacked methods have.
    size = max(1, ROWS // max(len(row[1]) for row in rows))
    for start in range(0, len(rows), size):
        yield packed(lens, rows[start : start + size])


def table(lens: Lens, plain: Lens, pictures: list[Image.Image], questions: list[int], rounds: int) -> list[str]:
    """A row per method: milliseconds a question, and the published loop's time over it, at each number of questions.

    plain: the same model, never touched by nnsight.
    """
    cells: dict[str, list[str]] = {name: [] for name in METHODS}
    for count in questions:
        whole = [(image, text) for place, image in enumerate(pictures) for text in asked(place, count)]
        few = [(image, text) for place, image in enumerate(pictures) for text in asked(place, min(count, TIMED))]
        seconds: dict[str, list[float]] = {name: [] for name in METHODS}
        for turn in range(rounds + 1):
            for name, (method, packs) in METHODS.items():
                work = whole if packs else few
                begun = time.perf_counter()
                method(lens if name.startswith("ours") else plain, work)
                # The first round warms up.
                if turn:
                    seconds[name].append((time.perf_counter() - begun) / len(work))
        base = seconds["published loop"]
        for name, times in seconds.items():
            ratio = median(first / own for first, own in zip(base, times, strict=True))
            cells[name].append(f"{1e3 * median(times):.1f} ms, {ratio:.2f}x")
    head = "| method | " + " | ".join(f"{count} questions an image" for count in questions) + " |"
    rows = [f"| {name} | {' | '.join(values)} |" for name, values in cells.items()]
    return [head, "|---" * (len(questions) + 1) + "|", *rows]


def growth(lens: Lens, pictures: list[Image.Image], sizes: list[int]) -> list[str]:
    """Time per question and the process's peak memory, ours packed, as the number of questions grows."""
    lines = ["| questions | ms a question | peak memory, MiB |", "|---|---|---|"]
    for size in sizes:
        work = [(pictures[number // 8 % len(pictures)], asked(number // 8, 8)[number % 8]) for number in range(size)]
        begun = time.perf_counter()
        ours_packed(lens, work)
        spent = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(f"| {size:,} | {1e3 * spent / size:.1f} | {peak:,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llava-next", help="an embedded model")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 8, 90])
    parser.add_argument("--growth", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lens = Lens.embedded(options.model)
    generator = torch.Generator().manual_seed(0)
    pictures = [
        Image.fromarray(torch.randint(0, 255, (96, 128, 3), dtype=torch.uint8, generator=generator).numpy())
        for _ in range(options.images)
    ]
    lines = [
        f"Model: embedded/{options.model}, {str(lens.dtype).removeprefix('torch.')}, {lens.device.type}, one thread;",
        f"{options.images} images, {lens.encode([pictures[0]], [QUESTIONS[0]])!r} for one question.",
        f"Medians of {options.rounds} interleaved rounds; the processor is included; ratios are to the published",
        f"loop of the same round. Above {TIMED} questions an image, unpacked methods are timed on {TIMED}.",
        "",
        *table(lens, Lens.embedded(options.model), pictures, options.questions, options.rounds),
    ]
    if options.growth:
        lines += ["", "Growth, ours packed, 8 questions an image:", "", *growth(lens, pictures, options.growth)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
