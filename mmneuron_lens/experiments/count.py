"""Count: how often each neuron is active in the samples of one domain, M and N of equation 4 (section 3.1)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions import GROUP_KINDS, SITES, Graph, count_active_by_kind, count_positions
from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.artifacts.counts import BUCKETS, LEFT_OUT, Counts
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.reachability import UNREACHABLE, UnreachableLayers
from mmneuron_lens.batching.batches import Step, one_domain, parted, sized, steps_of, steps_of_whole_images
from mmneuron_lens.batching.encoding import encode, encode_packed
from mmneuron_lens.batching.frames import with_frames_that_fit
from mmneuron_lens.batching.gather import WHOLE, Held, Keeper, Memory, Piece, Shard, add, by_group, gather
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.batching.remote import Jobs, Values, gather_remotely
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.frames import FRAMES, Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch

PACKED = 96
"""Questions of the same images that share one row, at most: RSVQA-HR asks about 90 of an image."""

GRAPH: Graph = count_active_by_kind.at("*.act") | count_positions.at("*.act")


@dataclass(frozen=True)
class CountPlan:
    """What is counted, before anything is: the steps, how they are encoded, and the facts that say what comes of it.

    - facts: everything that the counts depend on, as JSON; their provenance, and their key in a run.
    """

    domain: str
    steps: tuple[Step, ...]
    facts: Mapping[str, Any]
    prompt: Prompt
    frames: Frames
    packs: bool


def plan_count(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    corpus: str = "",
    exact: bool = False,
    problems: Problems | None = None,
) -> CountPlan:
    """Samples of one domain as steps of work.

    - prompt: which of the paper's prompts.
    - frames: "fit": of several images a question as many evenly spaced ones as fit; "strip": all of them as one.
    - corpus: its name, for the provenance.
    - exact: ask every question by itself. Otherwise up to `PACKED` questions of the same images share one row where the
      model allows it, and elsewhere their pass of the vision tower: the same counts but for float rounding at zero.
    - problems: where samples whose image cannot be read are named; without it the first raises `InvalidValue`.

    Raises `InvalidValue` for samples of several domains, or none.
    """
    domain = one_domain(samples, "counts")
    if frames not in FRAMES:
        raise InvalidValue(unknown("frames", frames, FRAMES))
    if frames == "fit":
        samples = with_frames_that_fit(lens, samples, prompt)
    found = sized(samples, problems)
    packs = not exact and all(sample.images for sample in samples)
    rows = bool(lens.architecture.facts["images_in_text"])
    packing = "none" if not packs else f"{PACKED} questions" if rows else "vision tower"
    facts: dict[str, Any] = {"prompt": prompt, "batch size": batch_size, "packing": packing, "frames": frames}
    source = {"name": corpus, "questions": len(found), "sha256": content_digest(one.sample for one in found)}
    facts |= {"method": "activation > 0", "corpus": source, "domain": domain, UNREACHABLE: unreachable_layers(lens)}
    steps = steps_of_whole_images(found, batch_size, PACKED, rows) if packs else steps_of(found, batch_size)
    return CountPlan(domain, tuple(steps), provenance(**lens.model.facts(), **facts), prompt, frames, packs)


def count_steps(
    lens: Lens,
    plan: CountPlan,
    *,
    keeper: Keeper | None = None,
    shard: Shard = WHOLE,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    jobs: Jobs | None = None,
) -> list[Held]:
    """The pieces of a shard of the plan, each made unless it is kept: one forward a step, at every `.act` site.

    - keeper: where pieces are kept, so that a count that was killed goes on; memory unless given.
    - workers: processes that decode images ahead of the model, which changes no count; a server has no use for them.
    - jobs: count on a server.
    """
    keeper = Memory() if keeper is None else keeper

    def encoded(samples: Sequence[Sample], opened: Opener = open_images) -> tuple[Batch | None, list[Sample]]:
        if plan.packs:
            return encode_packed(lens, samples, plan.prompt, PACKED, problems, opened, plan.frames)
        return encode(lens, samples, plan.prompt, problems, opened, plan.frames)

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encoded(step.samples, opened)
        seen, left = parted(step.samples, kept)
        out = {} if batch is None else lens.run(GRAPH, batch)
        tokens = 0 if batch is None else int(batch.fields["llm"]["weight"].sum())
        return piece_of(lens, plan, step.group, out, seen, left, tokens)

    shared: dict[str, Any] = {
        "keeper": keeper,
        "shard": shard,
        "title": f"counting {plan.domain}",
        "progress": progress,
    }
    if jobs is None:
        held = gather(plan.steps, run, add, workers=workers, **shared)
    else:
        held = gather_remotely(
            lens, GRAPH, plan.steps, encoded, lambda *given: piece_of(lens, plan, *given), jobs=jobs, **shared
        )
    name_again(plan, [name for one in held for name in one.piece.left], problems)
    return held


def count_domain(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    jobs: Jobs | None = None,
    **planned: Any,
) -> Counts:
    """The counts of one domain, kept by nobody: `plan_count` (whose settings are `planned`), then all of its steps."""
    plan = plan_count(lens, samples, problems=problems, **planned)
    held = count_steps(lens, plan, workers=workers, problems=problems, progress=progress, jobs=jobs)
    return counts_of(held, plan.facts)


def piece_of(
    lens: Lens,
    plan: CountPlan,
    group: int,
    out: Values,
    seen: tuple[str, ...],
    left: tuple[str, ...],
    tokens: int = 0,
) -> Piece:
    """What a run of `GRAPH` counted: `active/SITE` int64 [layer, kind, neuron], `tokens/SITE` int64 [kind]."""
    tensors: dict[str, Tensor] = {}
    kinds = {site: prompt_kinds(site) for site in lens.sites if site.endswith(".act")}
    for site, names in kinds.items() if out else ():
        count, positions = out["count_active_by_kind", site], out["count_positions", site]
        if lens.architecture.place(site).layers is None:
            count, positions = count[None], positions[None]
        tensors[f"active/{site}"] = count[:, : len(names)].cpu().contiguous()
        # Every layer sees the same positions.
        tensors[f"tokens/{site}"] = positions[0, : len(names)].cpu().contiguous()
    facts = {"kinds": {site: list(names) for site, names in kinds.items()}, "steps": len(plan.steps)}
    return Piece(group, tensors, seen, left, facts, tokens)


def counts_of(held: Sequence[Held], facts: Mapping[str, Any]) -> Counts:
    """All pieces of a count as its counts; the same bytes however they were cut. Needs no model.

    - facts: of the plan.

    Raises `InvalidValue` when no sample could be read.
    """
    groups = by_group(held, add)
    model, domain = facts["model id"], facts["domain"]
    filled = [piece for piece in groups.values() if piece.tensors]
    if not filled:
        raise InvalidValue(f"no sample of {domain} could be read; see the problems of its rows.")
    kinds = {site: tuple(names) for site, names in filled[0].facts["kinds"].items()}
    active, tokens = {}, {}
    for site in kinds:
        layers, names, neurons = filled[0].tensors[f"active/{site}"].shape
        active[site] = torch.zeros(BUCKETS, layers, names, neurons, dtype=torch.int64)
        tokens[site] = torch.zeros(BUCKETS, names, dtype=torch.int64)
        for piece in filled:
            active[site][piece.group] = piece.tensors[f"active/{site}"]
            tokens[site][piece.group] = piece.tensors[f"tokens/{site}"]
    left = sorted({name for one in held for name in one.piece.left}, key=json.dumps)
    samples = sum(len(one.piece.seen) for one in held)
    shared = {name: value for name, value in facts.items() if name != "domain"}
    return Counts(model, domain, active, tokens, kinds, samples, {**shared, LEFT_OUT: left})


def unreachable_layers(lens: Lens) -> dict[str, UnreachableLayers]:
    """By site whose neurons are counted, the layers that cannot reach the logits; sites all of whose layers can have
    no entry. They are counted like all others.
    """
    found: dict[str, UnreachableLayers] = {}
    for site in (site for site in lens.sites if site.endswith(".act")):
        place = lens.architecture.place(site)
        if layers := [layer or 0 for layer, _ in place.paths() if not place.reaches(layer)]:
            found[site] = {"layers": layers, "why": place.why_dead}
    return found


def prompt_kinds(site: str) -> tuple[str, ...]:
    """The kinds of position that a prompt has at a site; generated tokens come last and are none of them."""
    kinds = GROUP_KINDS[SITES[site].group or ""]
    return tuple(kind for kind in kinds if kind != "generated")


def name_again(plan: CountPlan, left: Collection[str], problems: Problems | None) -> None:
    """Names the samples of these ids, which an earlier process found unreadable, in the problems of this one."""
    for sample in (sample for step in plan.steps for sample in step.samples if sample.id in left):
        if problems is not None:
            open_images(sample, problems)
