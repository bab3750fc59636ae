"""What `count --until` saves, and what it costs: tokens counted, and how far the selection is that of the whole corpus.

    python benchmarks/until.py --images 400 --model embedded/llava-next --model embedded/instructblip

Every round is counted once, and the rule is then asked for each value; the counts are those of `count --until`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import mmneuron_lens as mm
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.neurons.enough import EnoughRule
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.runs import until
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.store import Store

VALUES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def remembered() -> Any:
    """`count_stage` that counts the same samples once."""
    known: dict[tuple[Any, ...], Counts | None] = {}

    def counted(lens: mm.Lens, samples: Mapping[str, Sequence[mm.Sample]], store: Store, **more: Any) -> Any:
        found = {}
        for domain, some in samples.items():
            ids = (lens.name, domain, tuple(one.id for one in some))
            if ids not in known:
                known[ids] = count_stage(lens, {domain: some}, store, **more)[domain]
            found[domain] = known[ids]
        return found

    return counted


def jaccard(first: Selection, second: Selection) -> float:
    """Of the pairs of neuron and domain that are selected, in all modules."""
    pairs = [(first.masks[site], second.masks[site]) for site in first.masks]
    shared, either = (sum(int(one(a, b).sum()) for a, b in pairs) for one in (torch.logical_and, torch.logical_or))
    return shared / either


def tokens(counts: Sequence[Counts]) -> int:
    return sum(one.provenance["corpus"][until.COUNTED]["tokens"] for one in counts)


def measure(name: str, images: int, questions: int) -> None:
    lens, corpus = mm.Lens(name), mm.load_corpus("drawn", images=images, questions_per_image=questions)
    until.count_stage = remembered()
    given = {"batch_size": 32, "corpus": corpus.name}
    start = time.perf_counter()
    whole = [*until.count_until(lens, corpus.by_domain(), Store(None), rule=EnoughRule(1.0), **given).values()]
    took, selection = time.perf_counter() - start, select(whole)
    neurons = sum(selection.selected(site) for site in selection.masks)
    print(f"\n{name}: {len(corpus):,} questions, {tokens(whole):,} LLM tokens, {neurons} neurons, {took:.0f} s")
    print("| until | domains enough | tokens counted | saved | Jaccard with the whole | lowest overlap at the end |")
    print("|---|---|---|---|---|---|")
    for value in VALUES:
        found = until.count_until(lens, corpus.by_domain(), Store(None), rule=EnoughRule(value), **given)
        told = [one.provenance["corpus"][until.COUNTED] for one in found.values()]
        share = tokens([*found.values()]) / tokens(whole)
        enough = sum(one["enough"] for one in told)
        lowest = min(one["overlap"][0] for one in told if one["overlap"])
        same = jaccard(select([*found.values()]), selection)
        print(
            f"| {value} | {enough} of {len(told)} | {share:.0%} | {1 - share:.0%} | {same:.2f} | {lowest:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="embedded/NAME; repeat it for several")
    parser.add_argument("--images", type=int, default=400, help="of each domain")
    parser.add_argument("--questions", type=int, default=1, help="of each image")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.model or ["embedded/llava-next", "embedded/instructblip", "embedded/idefics3"]:
        measure(name, arguments.images, arguments.questions)


if __name__ == "__main__":
    main()
