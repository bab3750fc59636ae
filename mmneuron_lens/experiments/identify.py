"""Identify: from samples of several domains to their domain-specific neurons and the controls (sections 3.1, 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions import GROUP_KINDS, SITES, count_active_by_kind, count_positions
from mmneuron_lens.artifacts import provenance
from mmneuron_lens.batch import Batch
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.asking import (
    Progress,
    Prompt,
    Sized,
    batches,
    encode,
    encode_packed,
    model_facts,
    quietly,
    sized,
)
from mmneuron_lens.experiments.sharding import counted_remotely
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.control import FalseDiscovery, HalvesOverlap, false_discovery_rate, halves_overlap
from mmneuron_lens.neurons.counts import BUCKETS, Counts
from mmneuron_lens.neurons.selection import Selection, select
from mmneuron_lens.neurons.silent import silent_neurons
from mmneuron_lens.packing import can_pack

PACKED = 8
"""Questions of the same images that share one row, at most."""

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
    problems: Problems | None = None,
    progress: Progress = quietly,
    remote: bool | str = False,
    **jobs: Any,
) -> Counts:
    """How often each neuron is active in the samples of one domain: M and N of equation 4, by bucket and kind.

    One forward per batch, at every `.act` site of the architecture. Where the model allows it, up to `PACKED`
    questions of the same images share one row, which counts the same but for float rounding at zero; `exact` asks
    them one by one. A sample whose image cannot be read is named in
    `problems` and left out (without `problems` it raises `ValueError`). `corpus` names the corpus in the provenance.
    `remote` (True, or the URL of an NDIF server) counts there, in jobs that survive lost connections and this process;
    `jobs` are settings of `runtime.jobs.run_shards`.
    Raises `ValueError` when there is no sample, or samples of several domains.
    """
    domains = sorted({sample.domain for sample in samples})
    if len(domains) != 1:
        raise ValueError(f"counts are of one domain, and these {len(samples)} samples are of {domains or 'none'}.")
    domain = domains[0]
    found = sized(samples, problems)
    packs = can_pack(lens) and not exact and all(sample.images for sample in samples)
    graph = count_active_by_kind.at("*.act") | count_positions.at("*.act")
    kinds = {site: _prompt_kinds(site) for site in lens.sites if site.endswith(".act")}
    active, tokens = _zeros(lens, kinds)
    counted: set[str] = set()

    def encode_one(some: Sequence[Sample]) -> tuple[Batch | None, list[Sample]]:
        if packs:
            return encode_packed(lens, some, prompt, PACKED, problems)
        return encode(lens, some, prompt, problems)

    def encoded(group: Any) -> Iterator[Batch]:
        for _, some in group:
            batch, kept = encode_one(some)
            counted.update(sample.id for sample in kept)
            if batch is not None:
                yield batch

    made, title = batches(found, batch_size), f"counting {domain}"
    if remote:
        settings = {"remote": remote, "title": title, "progress": progress, **jobs}
        passes = counted_remotely(lens, graph, made, found, encode_one, counted, problems, settings)
    else:
        groups = groupby(progress(made, title), key=lambda one: one[0])
        passes = ((bucket, lens.run(graph, encoded(group))) for bucket, group in groups)
    for bucket, out in passes:
        for site in kinds if out else ():
            count, positions = out["count_active_by_kind", site], out["count_positions", site]
            if lens.anatomy.place(site).layers is None:
                count, positions = count[None], positions[None]
            active[site][bucket] += count[:, : len(kinds[site])].cpu()
            # Every layer sees the same positions.
            tokens[site][bucket] += positions[0, : len(kinds[site])].cpu()
    if not counted:
        raise ValueError(f"no sample of {domain} could be read; see the problems of its rows.")
    packing = f"{PACKED} questions" if packs else "none"
    facts = {"prompt": prompt, "batch size": batch_size, "packing": packing, "method": "activation > 0"}
    source = {"name": corpus, "questions": len(counted), "sha256": _digest(found, counted)}
    return Counts(
        model=model_facts(lens)["model id"],
        domain=domain,
        active=active,
        tokens=tokens,
        kinds=kinds,
        samples=len(counted),
        provenance=provenance(
            **{**model_facts(lens), **({"device": "server"} if remote else {})}, **facts, corpus=source
        ),
    )


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
    problems: Problems | None = None,
    progress: Progress = quietly,
    remote: bool | str = False,
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


def _zeros(lens: Lens, kinds: dict[str, tuple[str, ...]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    active, tokens = {}, {}
    for site, names in kinds.items():
        place = lens.anatomy.place(site)
        shape = (BUCKETS, place.layers or 1, len(names), place.sizes["neuron"])
        active[site] = torch.zeros(shape, dtype=torch.int64)
        tokens[site] = torch.zeros(BUCKETS, len(names), dtype=torch.int64)
    return active, tokens


def _digest(found: list[Sized], counted: set[str]) -> str:
    """What was counted, whatever its order: ids, questions and the first image's hash."""
    facts = sorted((one.sample.id, one.sample.question, one.digest) for one in found if one.sample.id in counted)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
