"""Sharding: batches of a corpus as jobs on a server, and what each job counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from interventions import Graph
from mmneuron_lens.batching.batches import Sized
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch

BATCHES = 4
"""Batches of one bucket in one job, at most."""

Encode = Callable[[Sequence[Sample]], tuple[Batch | None, list[Sample]]]


def counted_remotely(
    lens: Lens,
    graph: Graph,
    made: Sequence[tuple[int, list[Sample]]],
    found: Sequence[Sized],
    encode: Encode,
    counted: set[str],
    problems: Problems | None,
    settings: Mapping[str, Any],
) -> Iterator[tuple[int, Mapping[tuple[str, str], Any]]]:
    """Per shard its bucket and results, as `lens.run` gives them for the shard's batches.

    made: batches with their bucket; a shard is a pure function of them. encode: samples to a batch, and those that
    could be read; these go to `counted`, and the others to `problems`, also when another process counted the shard.
    settings: of `run_shards`.
    """
    from mmneuron_lens.runtime.jobs import Shard, run_shards

    digests = {one.sample.id: one.digest for one in found}
    parts = []
    for bucket, group in groupby(made, key=lambda one: one[0]):
        batches = [samples for _, samples in group]
        parts += [(bucket, batches[start : start + BATCHES]) for start in range(0, len(batches), BATCHES)]

    def shard(batches: list[list[Sample]]) -> Any:
        content = [
            [(one.id, digests[one.id], tuple(map(_name, one.images)), one.question, one.options) for one in some]
            for some in batches
        ]

        def make() -> tuple[list[Batch], dict[str, Any]]:
            pairs = [encode(some) for some in batches]
            kept = [sample.id for _, some in pairs for sample in some]
            return [batch for batch, _ in pairs if batch is not None], {"counted": kept}

        return Shard(content, make)

    results = run_shards(lens.model, graph, [shard(batches) for _, batches in parts], **settings)
    for (bucket, batches), (values, facts) in zip(parts, results, strict=True):
        counted.update(facts["counted"])
        for sample in (sample for some in batches for sample in some):
            if sample.id not in counted and problems is not None:
                open_images(sample, problems)
        yield bucket, values


def _name(path: Path) -> str:
    return path.name
