"""Bounds that are not about counting: ablated generation, the lens, imports, growth. Each prints lines of Markdown."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import methods
import models
import torch
from turns import MIB, forget_peak, resident

from interventions import count_active_by_kind, count_positions, logit_lens, per_layer, zero_neurons
from mmneuron_lens import Lens


def alternately(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, taking turns after one try each, and the median of second over first within a round."""
    pairs = []
    for _ in range(rounds + 1):
        spent = []
        for one in (first, second):
            begun = time.perf_counter()
            one()
            spent.append(time.perf_counter() - begun)
        pairs.append(spent)
    pairs = pairs[1:]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


def compare_and_reduce(model: str, dtype: str) -> str:
    """What counting itself takes for a question's activations, in every layer: no model, no tracing."""
    lens = models.load(model, dtype)
    rows = models.ROWS[model]
    batch = lens.encode(models.pictures(model, rows), models.asked(0, rows))
    spent = 0.0
    for name in lens.sites:
        if not name.endswith(".act"):
            continue
        place = lens.architecture.place(name)
        fields = batch.fields[name.split(".")[0]]
        act = torch.randn(*fields["weight"].shape, place.sizes["neuron"], dtype=getattr(torch, dtype))
        kinds = {"weight": fields["weight"], "kind": fields["kind"]}

        def count(act: torch.Tensor = act, kinds: dict[str, torch.Tensor] = kinds) -> None:
            count_active_by_kind(act, **kinds)
            count_positions(act, **kinds)

        took, _, _ = alternately(count, count, 5)
        spent += took * (place.layers or 1) / rows
    return f"Comparing and reducing alone: {1e3 * spent:,.1f} ms"


def generation(rounds: int, model: str = "real-parts", tokens: int = 8) -> list[str]:
    """Five beams with 1 % of the language model's neurons off over five beams of plain transformers."""
    lens, plain = models.load(model, "float32"), models.load(model, "float32")
    batch = lens.encode(models.pictures(model, 1), models.asked(0, 1))
    place = lens.architecture.place("llm.mlp.act")
    neurons = torch.rand(place.layers or 1, place.sizes["neuron"], generator=torch.Generator().manual_seed(0)) < 0.01
    graph = zero_neurons.bind(neurons=per_layer(neurons))
    settings: dict[str, Any] = {"num_beams": 5, "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}

    def plainly() -> None:
        with torch.no_grad():
            plain.module.generate(**inputs, **settings)

    before, after, ratio = alternately(plainly, lambda: lens.generate(graph, batch, **settings), rounds)
    return [
        f"Ablated generation ({model}, 5 beams, {tokens} tokens, {batch.rows} x {batch.prompt_length} positions): "
        f"plain {before:.2f} s, ours {after:.2f} s, ratio {ratio:.3f} (target 1.05 at most)."
    ]


def lens_bound(rounds: int, positions: int = 2900, vocabulary: int = 32_000, width: int = 4096) -> list[str]:
    """The lens of one layer over its matrix products, and the memory it takes beside them, float32."""
    torch.manual_seed(0)
    head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(1, positions, width)

    def products() -> None:
        for some in hidden.flatten(0, -2).split(256):
            head(some)

    def lens() -> None:
        logit_lens(hidden, unembed=head)

    with torch.no_grad():
        # What the library keeps of the weights for its products is not the lens's, nor may it use what is free again.
        products()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        held = resident("VmRSS")
        forget_peak()
        lens()
        peak = (resident("VmHWM") - held) / MIB
        before, after, ratio = alternately(products, lens, rounds)
    return [
        f"Lens ({positions:,} positions, vocabulary {vocabulary:,}, width {width:,}): products {before:.2f} s, lens "
        f"{after:.2f} s, ratio {ratio:.3f} (target 1.15 at most); {peak:,.0f} MiB beyond the model (at most 512)."
    ]


def imports(rounds: int) -> list[str]:
    """What `import mmneuron_lens` takes over torch and transformers, in fresh processes, and `mmneuron --help`."""

    def importing(what: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {what}"], check=True)

    def asking() -> None:
        subprocess.run([sys.executable, "-m", "mmneuron_lens.cli", "--help"], check=True, capture_output=True)

    both, ours, _ = alternately(
        importing("torch, transformers"), importing("torch, transformers, mmneuron_lens"), rounds
    )
    begun = time.perf_counter()
    asking()
    spent = time.perf_counter() - begun
    return [
        f"Import: torch and transformers {both:.2f} s, with mmneuron_lens {ours:.2f} s, "
        f"{ours - both:.2f} s more (target 0.3 at most); `mmneuron --help` {spent:.2f} s (target 0.4)."
    ]


def growth(sizes: list[int]) -> list[str]:
    """Time per question and the process's peak memory as questions grow: embedded model, packed, 8 an image."""
    lens: Lens = models.load("embedded", "float32")
    pictures = models.pictures("embedded", 4)
    lines = ["| questions | ms a question | peak memory, MiB |", "|---|---|---|"]
    for size in sizes:
        asked = [(number // 8, models.asked(number // 8, 8)[number % 8]) for number in range(size)]
        work = [(pictures[image % len(pictures)], text) for image, text in asked]
        begun = time.perf_counter()
        methods.ours_packed(lens, work, 8)
        spent = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(f"| {size:,} | {1e3 * spent / size:.1f} | {peak:,.0f} |")
    return lines
