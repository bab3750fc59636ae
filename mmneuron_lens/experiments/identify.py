"""Identify: from samples of several domains to their domain-specific neurons and the controls (sections 3.1, 3.2)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions import GROUP_KINDS, SITES, count_active_by_kind, count_positions
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import BUCKETS, LEFT_OUT, Counts
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.batching.batches import (
    Progress,
    Prompt,
    Sized,
    batches,
    encode,
    encode_packed,
    model_facts,
    quietly,
    rows_of,
    sized,
)
from mmneuron_lens.batching.frames import with_frames_that_fit
from mmneuron_lens.batching.prefetch import Opener, decoded_ahead
from mmneuron_lens.batching.throughput import Pace
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.controls import FalseDiscovery, HalvesOverlap, false_discovery_rate, halves_overlap
from mmneuron_lens.neurons.selection import Selection, select
from mmneuron_lens.neurons.silent import silent_neurons
from mmneuron_lens.runs.checkpoint import Checkpoint
from mmneuron_lens.runs.merging import WHOLE, Shard
from mmneuron_lens.runs.sharding import counted_remotely
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.encoding import can_pack

PACKED = 96
"""Questions of the same images that share one row, at most: RSVQA-HR asks about 90 of an image."""

WIDER = 0.05
"""Table 6 repeats the selection at 5 %."""


@dataclass(frozen=True)
class Identified:
    """What is found in the counts of several domains.

    `wider` is the selection at `WIDER`; the two controls are None, and `uncontrolled` says why, where the corpus is
    too small for them.
    """

    counts: tuple[Counts, ...]
    selection: Selection
    wider: Selection
    discovery: FalseDiscovery | None
    overlap: HalvesOverlap | None
    uncontrolled: str = ""

    def silent(self, site: str) -> Bool[Tensor, "layer neuron"]:
        """Neurons of a site that were active on no token of any domain (Figure 9)."""
        return silent_neurons(list(self.counts), site)


def count_domain(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    corpus: str = "",
    exact: bool = False,
    shard: Shard = WHOLE,
    workers: int = 0,
    checkpoint: Checkpoint | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
    remote: bool | str | None = None,
    **jobs: Any,
) -> Counts:
    """How often each neuron is active in the samples of one domain: M and N of equation 4, by bucket and kind.

    One forward per batch, at every `.act` site of the architecture. Where the model allows it, up to `PACKED`
    questions of the same images share one row, elsewhere their pass of the vision tower, which counts the same but for
    float rounding at zero; `exact` asks them one by one. A sample whose image cannot be read is named in
    `problems` and left out (without `problems` it raises `ValueError`). `corpus` names the corpus in the provenance.
    Of several images a question (frames of a video) as many evenly spaced ones are asked about as fit into the model.
    `workers` processes decode images ahead of the model, which changes no count; jobs on a server have no use for them.
    `shard` counts only its part of the batches, for `merge_shards`. With a `checkpoint` a count that was killed goes
    on where it was, and ends with the same counts.
    `remote` (True, or the URL of an NDIF server; `lens.remote` if left out) counts
    there, in jobs that survive lost connections and this process;
    `jobs` are settings of `runtime.jobs.run_shards`.
    Raises `ValueError` when there is no sample, samples of several domains, or a checkpoint of something else.
    """
    domains = sorted({sample.domain for sample in samples})
    if len(domains) != 1:
        raise InvalidValue(f"counts are of one domain, and these {len(samples)} samples are of {domains or 'none'}.")
    domain = domains[0]
    remote = lens.remote if remote is None else remote
    if any(len(sample.images) > 1 for sample in samples):
        samples = with_frames_that_fit(lens, {domain: samples}, prompt, new_tokens=0)[domain]
    found = sized(samples, problems)
    packs = not exact and all(sample.images for sample in samples)
    graph = count_active_by_kind.at("*.act") | count_positions.at("*.act")
    model = model_facts(lens)
    if remote and lens.model.served is None:
        model |= {"device": "server"}
    packing = "none" if not packs else f"{PACKED} questions" if can_pack(lens.model) else "vision tower"
    facts = {"prompt": prompt, "batch size": batch_size, "packing": packing, "method": "activation > 0"}
    source = {"name": corpus, "questions": len(found), "sha256": _digest(found)}
    shards = {} if shard == WHOLE else {"shards": [str(shard)]}
    total = _empty(lens, domain, provenance(**model, **facts, **shards, corpus=source))
    mine = shard.part(whole_images(found, batch_size, can_pack(lens.model)) if packs else batches(found, batch_size))
    done = 0
    if checkpoint is not None:
        finished = checkpoint.already(total)
        if finished is not None:
            _name_again(finished, samples, problems)
            return finished
        total, done = checkpoint.begun(total)
        _name_again(total, samples, problems)
    counted = {sample.id for _, some in mine[:done] for sample in some} - set(total.provenance.get(LEFT_OUT, ()))

    def encode_one(some: Sequence[Sample], opened: Opener = open_images) -> tuple[Batch | None, list[Sample]]:
        if packs:
            return encode_packed(lens, some, prompt, PACKED, problems, opened)
        return encode(lens, some, prompt, problems, opened)

    def counts_of(batches: Sequence[tuple[int, list[Sample]]]) -> Counts:
        left = sorted({sample.id for _, some in batches for sample in some} - counted, key=json.dumps)
        return replace(total, samples=len(counted), provenance={**total.provenance, LEFT_OUT: left})

    title = f"counting {domain}"
    if remote:
        settings = {"remote": remote, "title": title, "progress": progress, **jobs}
        for bucket, out in counted_remotely(lens, graph, mine, found, encode_one, counted, problems, settings):
            _add(lens, total, bucket, out)
    else:
        pace = Pace(progress(mine[done:], title), checkpoint.clock if checkpoint else time.monotonic)
        ahead = decoded_ahead([some for _, some in mine[done:]], workers)
        for (bucket, some), opened in zip(pace, ahead, strict=True):
            batch, kept = encode_one(some, opened)
            counted.update(sample.id for sample in kept)
            if batch is not None:
                _add(lens, total, bucket, lens.run(graph, batch))
                pace.tell(int(batch.fields["llm"]["weight"].sum()))
            done += 1
            if checkpoint is not None and pace.due(checkpoint.seconds):
                checkpoint.save(counts_of(mine[:done]), done)
    if not counted and shard == WHOLE:
        raise InvalidValue(f"no sample of {domain} could be read; see the problems of its rows.")
    return counts_of(mine)


def whole_images(found: Sequence[Sized], batch_size: int, rows: bool) -> list[tuple[int, list[Sample]]]:
    """Batches with their bucket, like `asking.batches`, that do not part the questions of one image.

    A batch holds at most `batch_size` questions; where questions share `rows`, one image's may be more, up to `PACKED`.
    """
    if batch_size < 1:
        raise InvalidValue(f"batch size is {batch_size}; it must be 1 or more.")
    made: list[tuple[int, list[Sample]]] = []
    for bucket, some in batches(found, max(len(found), 1)):
        for row in rows_of(some, PACKED if rows else min(PACKED, batch_size)):
            if not made or made[-1][0] != bucket or len(made[-1][1]) + len(row) > batch_size:
                made.append((bucket, []))
            made[-1][1].extend(row)
    return made


def find(
    counts: Sequence[Counts],
    *,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: dict[str, tuple[str, ...]] | None = None,
    wider: float = WIDER,
    permutations: int = 20,
    seed: int = 0,
    progress: Progress = quietly,
) -> Identified:
    """The selection from counts of two or more domains, again at `wider`, and its controls; raises as `select` does."""
    counts = list(counts)
    selection = select(counts, fraction, percentile, kinds)
    discovery = overlap = None
    uncontrolled = ""
    try:
        overlap = halves_overlap(counts, fraction, percentile, kinds, seed=seed)
        name = f"shuffling domains of {selection.model}"
        discovery = false_discovery_rate(
            counts, selection, permutations, seed, progress=lambda draws: progress(draws, name)
        )
    except ValueError as error:
        overlap, uncontrolled = None, f"The controls were not run: {error}"
    return Identified(
        tuple(counts), selection, select(counts, wider, percentile, kinds), discovery, overlap, uncontrolled
    )


def identify(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    corpus: str = "",
    exact: bool = False,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    remote: bool | str | None = None,
    jobs: Mapping[str, Any] | None = None,
    **finding: Any,
) -> Identified:
    """Count every domain, then `find`: the main job in one call. `finding` are settings of `find`, `jobs` of jobs."""
    counts = [
        count_domain(
            lens,
            samples,
            batch_size=batch_size,
            prompt=prompt,
            corpus=corpus,
            exact=exact,
            workers=workers,
            problems=problems,
            progress=progress,
            remote=remote,
            **(jobs or {}),
        )
        for samples in samples_by_domain.values()
    ]
    return find(counts, progress=progress, **finding)


def _prompt_kinds(site: str) -> tuple[str, ...]:
    """The kinds of position that a prompt has at a site; generated tokens come last and are none of them."""
    kinds = GROUP_KINDS[SITES[site].group or ""]
    return tuple(kind for kind in kinds if kind != "generated")


def _empty(lens: Lens, domain: str, facts: dict[str, Any]) -> Counts:
    active, tokens = {}, {}
    kinds = {site: _prompt_kinds(site) for site in lens.sites if site.endswith(".act")}
    for site, names in kinds.items():
        place = lens.architecture.place(site)
        shape = (BUCKETS, place.layers or 1, len(names), place.sizes["neuron"])
        active[site] = torch.zeros(shape, dtype=torch.int64)
        tokens[site] = torch.zeros(BUCKETS, len(names), dtype=torch.int64)
    return Counts(facts["model id"], domain, active, tokens, kinds, 0, facts)


def _add(lens: Lens, total: Counts, bucket: int, out: Mapping[tuple[str, str], Any]) -> None:
    """Adds what one run counted, in place."""
    for site, kinds in total.kinds.items() if out else ():
        count, positions = out["count_active_by_kind", site], out["count_positions", site]
        if lens.architecture.place(site).layers is None:
            count, positions = count[None], positions[None]
        total.active[site][bucket] += count[:, : len(kinds)].cpu()
        # Every layer sees the same positions.
        total.tokens[site][bucket] += positions[0, : len(kinds)].cpu()


def _name_again(counts: Counts, samples: Sequence[Sample], problems: Problems | None) -> None:
    """Names the samples that an earlier process found unreadable."""
    left = set(counts.provenance.get(LEFT_OUT, ()))
    for sample in samples:
        if sample.id in left:
            open_images(sample, problems)


def _digest(found: list[Sized]) -> str:
    """What is counted, whatever its order: ids, questions and the first image's hash."""
    facts = sorted((one.sample.id, one.sample.question, one.digest) for one in found)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
